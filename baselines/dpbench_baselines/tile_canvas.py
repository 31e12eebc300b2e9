"""The order in which the LLM reads AnyRes tiles: along the canvas that they make up together.

Shape letters: N visual tokens of an image, T tiles, K tokens of a tile.
"""

import torch
from torch import Tensor

from dpbench.method import VisualTokens


def canvas_order(ids_TK: Tensor, place_N: Tensor, *, misplace: bool = False) -> Tensor:
    """Return the tiles' tokens in the order in which the LLM reads them, int64 (T * K,).

    Args:
        ids_TK: int64, each tile's tokens; T may be 0.
        place_N: int64, place of every token of the image in that order.
        misplace: hand the places of a tile's tokens, in raster order, to its tokens in the order given.
    """
    places_TK = ids_TK.sort().values if misplace else ids_TK
    return ids_TK.flatten()[torch.argsort(place_N.to(ids_TK.device)[places_TK].flatten(), stable=True)]


def padded_places(visual: VisualTokens, num_tiles: int) -> Tensor:
    """Return every token's place in reading order if unpadding dropped nothing, int64 (N,).

    Only the tokens that are read tell how the tiles are arranged: of all grids, the one that agrees best with their
    slots is taken, the widest of equals.

    Args:
        visual: all tokens of the image.
        num_tiles: T, the base view not counted.
    """
    if num_tiles < 1:
        return torch.arange(len(visual), device=visual.view_N.device)
    widths = [width for width in range(num_tiles, 0, -1) if num_tiles % width == 0]
    places_GN = torch.stack([_places(visual, width) for width in widths])
    misfits_G = torch.stack([_count_misfits(places_N, visual) for places_N in places_GN])
    return places_GN[misfits_G.argmin()]


def _places(visual: VisualTokens, width: int) -> Tensor:
    """Return every token's place, base view first, with `width` tiles beside one another."""
    rows, columns = visual.row_N.max() + 1, visual.col_N.max() + 1
    tile_N = visual.view_N - 1
    row_N, column_N = tile_N // width * rows + visual.row_N, tile_N % width * columns + visual.col_N
    base_N = visual.row_N * columns + visual.col_N
    return torch.where(tile_N < 0, base_N, rows * columns + row_N * width * columns + column_N)


def _count_misfits(places_N: Tensor, visual: VisualTokens) -> Tensor:
    """Return how many neighbours among the tiles' slots are no neighbours on the canvas, or stand reversed."""
    slot_N = visual.slot_N.to(places_N.device)
    is_read_N = (slot_N >= 0) & (visual.view_N > 0)
    order_N = torch.argsort(slot_N.masked_fill(~is_read_N, torch.iinfo(torch.int64).max), stable=True)
    pairs = is_read_N[order_N][1:]
    slot_step, place_step = slot_N[order_N].diff(), places_N[order_N].diff()
    return (pairs & ((place_step <= 0) | ((slot_step == 1) & (place_step != 1)))).sum()
