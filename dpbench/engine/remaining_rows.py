"""What the decoder layers from one cut to the next read: which positions are left, and the mask over them.

Shape letters: R rows of the batch (samples, times beams), L positions of a stage, N visual rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpbench.method import Reduction


@dataclass(slots=True)
class RowLayout:
    """One row of the batch at a stage, in the stage's own positions without padding.

    Attributes:
        text: positions of the text, generated tokens included.
        visual: positions of the visual rows.
        columns: position of each row in the padded prompt; a merged row has that of its predecessor.
        token: which of the prompt's visual rows each visual one is, -1 for a merged row.
    """

    text: Tensor
    visual: Tensor
    columns: Tensor
    token: Tensor


@dataclass(slots=True)
class Stage:
    """What the layers from one cut to the next read.

    Attributes:
        rows: the batch's rows.
        columns_RL: position in the padded prompt of each column, left-padded.
        valid_RL: which columns are not padding; None if there is no padding.
        dropped_R: how many visual rows each row of the batch has lost so far.
        angles: cosines and sines for this prefill.
        mask: attention mask for this prefill, or None.
    """

    rows: list[RowLayout]
    columns_RL: Tensor
    valid_RL: Tensor | None
    dropped_R: list[int]
    angles: tuple[Tensor, Tensor] | None = None
    mask: Tensor | None = None


def select_rows(row: RowLayout, reduction: Reduction) -> tuple[Tensor, RowLayout]:
    """Return the positions that stay, in order, and the layout they form; a merged row follows its predecessor."""
    indices = reduction.indices_K.to(row.text.device)
    single = indices >= 0
    order = torch.arange(len(indices), device=indices.device)
    # a merged row (-1) has no position of its own: cummax gives it the last single row before it, so that the stable
    # sort below places it directly behind that row
    source = torch.where(single, order, -1).cummax(0).values.clamp(min=0) if len(indices) else order
    slots = row.visual[indices[source].clamp(min=0)]
    positions, order = torch.cat([row.text, slots]).sort(stable=True)
    place = order.argsort()
    num_text = len(row.text)
    token = torch.where(single, row.token[indices.clamp(min=0)], -1)
    return positions, RowLayout(place[:num_text], place[num_text:], row.columns[positions], token)


def pad_rows(rows: list[RowLayout], num_visual: list[int]) -> Stage:
    """Left-pad the rows to one length; padding repeats column 0, which is masked."""
    longest = max(len(row.columns) for row in rows)
    pads = [longest - len(row.columns) for row in rows]
    columns = torch.stack([nn.functional.pad(row.columns, (pad, 0)) for row, pad in zip(rows, pads, strict=True)])
    first_whole = all(len(row.columns) == longest for row in rows)
    valid = None if first_whole else _valid(pads, longest, columns.device)
    return Stage(rows, columns, valid, [n - len(row.visual) for n, row in zip(num_visual, rows, strict=True)])


def _valid(pads: list[int], length: int, device: torch.device) -> Tensor:
    starts = torch.tensor(pads, device=device)
    return torch.arange(length, device=device)[None] >= starts[:, None]


def prefill_mask(stage: Stage, mask: Tensor | None) -> Tensor | None:
    """Return rows and columns of the model's mask that are left, with the stage's padding hidden as well.

    A merged row has the column of the row before it, so the model's mask would let both see each other: causality is
    applied again.
    """
    columns, valid = stage.columns_RL, stage.valid_RL
    length = columns.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=columns.device).tril()
    if mask is None:
        return None if valid is None else causal & valid[:, None, None]
    columns = columns.to(mask.device)
    whole = mask.expand(len(columns), -1, -1, -1)
    rows = whole.gather(2, columns[:, None, :, None].expand(-1, whole.shape[1], -1, whole.shape[3]))
    part = rows.gather(3, columns[:, None, None].expand(-1, whole.shape[1], length, -1))
    return _hide_padding(_hide(part, ~causal.to(mask.device)), valid)


def _hide_padding(mask: Tensor, valid: Tensor | None) -> Tensor:
    return mask if valid is None else _hide(mask, ~valid.to(mask.device)[:, None, None])


def _hide(mask: Tensor, hidden: Tensor) -> Tensor:
    return mask.masked_fill(hidden, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def decode_mask(stage: Stage, mask: Tensor | None, *, length: int, num_new: int, num_queries: int) -> Tensor | None:
    """Return the mask's columns of what the stage's caches hold, for tokens after the prompt.

    Args:
        stage: what the layers read of the prompt.
        mask: the model's, or None.
        length: of the padded prompt.
        num_new: tokens behind it, the queries included.
        num_queries: tokens that run now.
    """
    valid = None if stage.valid_RL is None else nn.functional.pad(stage.valid_RL, (0, num_new), value=True)
    if mask is None:
        return None if valid is None else valid[:, None, None].expand(-1, 1, num_queries, -1)
    new = torch.arange(length, length + num_new, device=mask.device).expand(len(stage.rows), -1)
    columns = torch.cat([stage.columns_RL.to(mask.device), new], dim=1)
    whole = mask.expand(len(columns), -1, -1, -1)
    part = whole.gather(3, columns[:, None, None].expand(-1, whole.shape[1], whole.shape[2], -1))
    return _hide_padding(part, valid)
