"""The canvas of AnyRes tiles: padding stands where it lies, and `parity` has it read and counted."""

from dataclasses import replace

import pytest
import torch
from dpbench_baselines.prunesid import PruneSID
from dpbench_baselines.tile_canvas import padded_places
from dpbench_baselines.visionzip import VisionZip

from dpbench.method import Method, VisualTokens

SIDE = 6


def padded_image(
    rows: int, columns: int, *, pad_rows: int = 0, pad_columns: int = 0
) -> tuple[VisualTokens, torch.Tensor]:
    """Return a base view and rows x columns tiles with padding, and each token's place on the whole canvas."""
    num, tiles = SIDE**2, rows * columns
    index = torch.arange(num * (1 + tiles))
    view, row, column = index // num, index % num // SIDE, index % SIDE
    down, across = (view - 1) // columns * SIDE + row, (view - 1) % columns * SIDE + column
    width = columns * SIDE - 2 * pad_columns
    inside = (down >= pad_rows) & (down < rows * SIDE - pad_rows)
    inside &= (across >= pad_columns) & (across < columns * SIDE - pad_columns)
    slots = num + (down - pad_rows) * (width + 1) + across - pad_columns  # a newline behind every row
    slots = torch.where(view == 0, index, torch.where(inside, slots, -1))
    draw = torch.Generator().manual_seed(0)
    tokens = VisualTokens(
        embeds_ND=torch.randn(len(index), 8, generator=draw),
        hidden_NC=torch.randn(len(index), 8, generator=draw),
        view_N=view,
        row_N=row,
        col_N=column,
        read_N=slots >= 0,
        slot_N=slots,
        cls_hidden_VC=torch.randn(1 + tiles, 8, generator=draw),
        cls_attention={22: torch.rand(2, len(index), generator=draw)},
        keys_Nd=torch.randn(len(index), 4, generator=draw),
        generator=torch.Generator().manual_seed(0),
    )
    return tokens, torch.where(view == 0, index, num + down * columns * SIDE + across)


SHAPES = [
    (1, 2, 0, 0),
    (1, 2, 2, 0),
    (1, 2, 0, 4),
    (2, 1, 0, 2),
    (2, 1, 5, 0),
    (2, 2, 5, 0),
    (2, 2, 0, 5),
    (1, 3, 2, 0),
    (3, 1, 0, 2),
]


@pytest.mark.parametrize(("rows", "columns", "pad_rows", "pad_columns"), SHAPES)
def test_the_slots_of_what_is_read_tell_how_the_tiles_lie(
    rows: int, columns: int, pad_rows: int, pad_columns: int
) -> None:
    tokens, places = padded_image(rows, columns, pad_rows=pad_rows, pad_columns=pad_columns)
    assert torch.equal(padded_places(tokens, rows * columns), places)


@pytest.mark.parametrize("method", [VisionZip(parity=True, contextual=0), PruneSID(parity=True)])
def test_under_parity_padding_is_read_where_it_lies_and_counted(method: Method) -> None:
    tokens, places = padded_image(2, 2, pad_rows=4)
    reduction = method.reduce(tokens, 5 * 16)
    whole = replace(tokens, read_N=places >= 0, slot_N=places, generator=torch.Generator().manual_seed(0))
    wanted = method.reduce(whole, 5 * 16)  # the same image if nothing was padding
    assert len(reduction.indices_K) == 5 * 16
    assert reduction.hidden_KC is not None
    assert wanted.hidden_KC is not None
    assert torch.equal(reduction.hidden_KC, wanted.hidden_KC)
    is_padding = (wanted.indices_K >= 0) & ~tokens.read_N[wanted.indices_K]
    assert is_padding.sum() > 10
    assert torch.equal(reduction.indices_K, wanted.indices_K.masked_fill(is_padding, -1))
