"""The scorer: two Transformer encoder blocks and a linear head, one logit per visual token (DiffPrune section 4.2).

The paper's text lost its constants; width, heads and feed-forward factor are our defaults.

Shape letters: R rows (one view each), N visual tokens of a view, D the LLM's width, E the scorer's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BASE_WAVELENGTH = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerSize:
    """Shape of a scorer; `width` is the LLM's D, the rest are our constants."""

    width: int
    hidden: int = 512
    heads: int = 8
    layers: int = 2
    ffn: int = 4


class Scorer(nn.Module):
    """Logits of visual tokens, for any grid and number of them."""

    def __init__(self, size: ScorerSize) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(size.width)
        self.project = nn.Linear(size.width, size.hidden)
        self.blocks = encoder(size.hidden, size.heads, size.layers, size.ffn)
        self.head = nn.Linear(size.hidden, 1)

    def forward(self, tokens_RND: Tensor, row_RN: Tensor, col_RN: Tensor, valid_RN: Tensor | None = None) -> Tensor:
        """Return (R, N) float32 logits (float64 for a float64 scorer); those of padding are meaningless.

        Args:
            tokens_RND: visual tokens after the projector.
            row_RN: int64 rows of the patches in their view.
            col_RN: int64 columns.
            valid_RN: bool, False for padding, which no token attends to; None without padding.
        """
        hidden = self.project(self.norm(tokens_RND))
        hidden = hidden + sine_code(row_RN, col_RN, self.size.hidden).to(hidden.dtype)
        hidden = self.blocks(hidden, src_key_padding_mask=None if valid_RN is None else ~valid_RN)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.to(self.head.weight.dtype))[..., 0]  # type: ignore[no-any-return]

    def deploy(self, device: torch.device, dtype: torch.dtype) -> Scorer:
        """Prepare for inference: blocks in the backbone's type; the head, which ranks, in float32 or better."""
        self.to(device, dtype).eval().requires_grad_(False)
        self.head.to(torch.promote_types(dtype, torch.float32))
        return self


def encoder(hidden: int, heads: int, layers: int, ffn: int) -> nn.TransformerEncoder:
    """Return pre-norm Transformer encoder blocks without dropout, with a norm behind the last."""
    block = nn.TransformerEncoderLayer(
        hidden, heads, ffn * hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(hidden), enable_nested_tensor=False)
    for parameter in blocks.parameters():  # nn.TransformerEncoder copies one block, so all would begin the same
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return blocks


def sine_code(row_RN: Tensor, col_RN: Tensor, hidden: int) -> Tensor:
    """Return (R, N, E) float32: sines and cosines of row and column, a quarter of E each, at falling frequencies."""
    quarter = hidden // 4
    steps = torch.arange(quarter, device=row_RN.device, dtype=torch.float32)
    frequency = torch.exp(-math.log(BASE_WAVELENGTH) * steps / quarter)
    down, across = row_RN[..., None] * frequency, col_RN[..., None] * frequency
    return torch.cat([down.sin(), down.cos(), across.sin(), across.cos()], dim=-1)


@dataclass(frozen=True, slots=True)
class Views:
    """Layout of the views of several images as rows of one padded batch.

    Attributes:
        sizes: per image, the number of tokens of each of its views, all the same.
        valid_RN: bool, False for padding.
    """

    sizes: tuple[tuple[int, ...], ...]
    valid_RN: Tensor

    @property
    def padding_mask(self) -> Tensor | None:
        """`valid_RN`, or None if nothing is padded."""
        return None if len({size for image in self.sizes for size in image}) == 1 else self.valid_RN

    def rows(self, images: Sequence[Tensor]) -> Tensor:
        """Lay one tensor per image (N of all its views, ...) out as (R, N, ...), zeros as padding."""
        parts = [view for image, sizes in zip(images, self.sizes, strict=True) for view in image.split(sizes)]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def images(self, values_RN: Tensor) -> list[Tensor]:
        """Split (R, N, ...) into one tensor per image, in tower order."""
        rows = iter(values_RN)
        return [torch.cat([next(rows)[:size] for size in image]) for image in self.sizes]


def lay_out(num_tokens: Sequence[int], num_views: Sequence[int], device: torch.device) -> Views:
    """Return the layout of images, given their numbers of tokens and of views."""
    sizes = tuple((n // views,) * views for n, views in zip(num_tokens, num_views, strict=True))
    lengths = torch.tensor([size for image in sizes for size in image], device=device)
    return Views(sizes, torch.arange(int(lengths.max()), device=device) < lengths[:, None])
