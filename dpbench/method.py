"""The contract between a method and the harness: a method decides, the harness applies.

Shape letters: N visual tokens of one image, K rows the LLM reads instead, D the LLM's width, C the tower's width,
d one attention head's width, V views of the image, H attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from dpbench.errors import UnsupportedError

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTokens:
    """The visual tokens of one image, all its views, in tower order (before any AnyRes unpadding).

    A field whose name has N among its shape letters has one entry per token.

    Attributes:
        embeds_ND: after the projector.
        hidden_NC: vision tower at the select layer, CLS dropped, before the projector.
        view_N: int64, 0 for the base (or only) view, 1.. for tiles.
        row_N: int64, row of the patch in its view.
        col_N: int64, column of the patch in its view.
        read_N: bool, False where unpadding drops the token anyway.
        slot_N: int64, the token's place in the order the unpruned LLM reads (AnyRes lays tiles out as one map there),
            newlines counted; -1 where unpadding drops it.
        cls_hidden_VC: the CLS row of each view.
        cls_attention: tower layer -> (H, N) float32, the CLS query over the patches, not renormalised.
        received_attention_N: for towers without CLS, mean over heads and queries, in token order.
        keys_Nd: head-mean keys of the select layer; for towers without CLS, of the last block that attends over the
            whole image, after RoPE, and the mean over the patches of a token.
    """

    embeds_ND: Tensor
    hidden_NC: Tensor
    view_N: Tensor
    row_N: Tensor
    col_N: Tensor
    read_N: Tensor
    slot_N: Tensor
    cls_hidden_VC: Tensor | None = None
    cls_attention: Mapping[int, Tensor] = field(default_factory=dict)
    received_attention_N: Tensor | None = None
    keys_Nd: Tensor | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.embeds_ND)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualTokens(ImageTokens):
    """One image as a method reads it: its tokens, the question, and randomness.

    Attributes:
        generator: CPU, seeded by cell seed, sample and image; a method's only source of randomness.
        question: the bare question, for text-aware methods.
    """

    generator: torch.Generator
    question: str = ""


@dataclass(frozen=True, slots=True)
class Reduction:
    """The rows the LLM reads, in order.

    Attributes:
        indices_K: int64, which token each row is; -1 for a row that is no single token (merged, CLS, padding).
        embeds_KD: the rows themselves where they are not plain gathers of `VisualTokens.embeds_ND`.
        hidden_KC: or the rows in tower space, which the harness projects.
        scores_N: the ranking behind the choice, for the heat map.
    """

    indices_K: Tensor
    embeds_KD: Tensor | None = None
    hidden_KC: Tensor | None = None
    scores_N: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """How many visual tokens: as the mean over decoder layers, or after the last cut."""

    count: int
    kind: Literal["mean", "final"] = "mean"


@dataclass(frozen=True, slots=True)
class Cut:
    """Before decoder layer `layer`, keep `keep` visual rows (0 allowed), ranked at layer `probe`.

    merged: how many of them are rows that the method merges from what it drops.
    """

    layer: int
    keep: int
    probe: int
    merged: int = 0


@dataclass(frozen=True, slots=True)
class DecoderInput:
    """One prompt as the first decoder layer reads it, without padding.

    Attributes:
        embeds_LD: the input embeddings.
        visual_index_N: positions of the visual tokens, int64, rising.
        text_index: positions of the text, int64, rising.
    """

    embeds_LD: Tensor
    visual_index_N: Tensor
    text_index: Tensor


Spends = Literal["per-image", "on-average", "own"]

LAST = slice(-1, None)
"""The last prompt token, as the rows of `LayerView.attention`."""


class LayerView(Protocol):
    """The only window on the decoder, for methods that cut inside it: one sample, without padding.

    L counts the positions still there at the cut. Everything is computed on first use. On a GPU, index with
    the index fields rather than the flags: a boolean index waits for the device.
    """

    @property
    def cut(self) -> Cut:
        """The cut being decided."""

    @property
    def stage(self) -> int:
        """Which cut of the method it is, from 0."""

    @property
    def hidden_LD(self) -> Tensor:
        """Hidden states entering the layer."""

    @property
    def embeds_LD(self) -> Tensor:
        """The decoder's input embeddings; a merged row has those of the row before it."""

    @property
    def prompt(self) -> DecoderInput:
        """The whole prompt, what earlier cuts dropped included."""

    @property
    def visual_index_N(self) -> Tensor:
        """Positions of the visual tokens still there, int64, rising."""

    @property
    def text_index(self) -> Tensor:
        """Positions of the text, int64, rising."""

    @property
    def visual_L(self) -> Tensor:
        """Which positions are visual, bool."""

    @property
    def angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines by which RoPE turns the positions, (L, d) each."""

    @property
    def queries_HLd(self) -> Tensor:
        """Queries at `cut.probe`, after RoPE."""

    @property
    def keys_HLd(self) -> Tensor:
        """Keys at `cut.probe`, after RoPE, one per query head."""

    def attention(self, rows: slice | Tensor = LAST) -> Tensor:
        """Return (H, R, L) float32: causal softmax over all positions still there, for the query rows given."""
        ...

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the decoder's last norm."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """Keep every visual token; the unpruned backbone that all retention is measured against.

    Subclasses are frozen dataclasses whose fields are their hyper-parameters.

    positions: position ids of the kept tokens, consecutive ("compact") or as in the full prompt ("original").

    spends: what the budget holds for: every image ("per-image", checked), the mean over the images of a cell
        ("on-average"), or not at all, because a hyper-parameter sets the number of tokens ("own").
    """

    anyres: ClassVar[Literal["per-view", "global", "own"]] = "per-view"
    spends: ClassVar[Spends] = "per-image"

    positions: Literal["compact", "original"] = "compact"

    def needs(self, provides: frozenset[str]) -> frozenset[str]:
        """Return which optional fields of VisualTokens this method reads.

        "cls_attention" stands for the select layer's rows, "cls_attention[0]" for those of the tower's first layer.

        Args:
            provides: the names this backbone can fill.

        Raises:
            UnsupportedError: the backbone provides nothing that this method can use.
        """
        return frozenset()

    def files(self, backbone: str) -> tuple[Path, ...]:
        """Return the files this method reads its weights from on a backbone; their content is part of a cell's id.

        Raises:
            MissingError: a file does not exist.
        """
        return ()

    def untrained(self) -> Method:
        """Return a copy that takes fresh weights where it would read files: for conformance checks and timing only."""
        return self

    def graphed(self) -> Method:
        """Return a copy that replays its own network as a CUDA graph, where it has one and runs on a GPU."""
        return self

    def bind(self, backbone: Backbone) -> Method:
        """Return a copy that holds what it derives from the backbone; called once per backbone, before timing."""
        return self

    def resize(self, grid_hw: tuple[int, int], budget: Budget) -> tuple[int, int]:
        """Return how many rows and columns of visual tokens the tower makes of an image.

        Args:
            grid_hw: how many it would make by itself; the image is resized once, from its original size.
            budget: visual tokens of this image.
        """
        return grid_hw

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        """Decide, before the LLM, which rows it reads.

        Args:
            visual: the image's tokens.
            keep: budget in visual tokens, 1 <= keep <= N.
        """
        return Reduction(torch.arange(len(visual), device=visual.embeds_ND.device))

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        """Return where and how far to cut inside the LLM: data, so that FLOPs follow without running."""
        return ()

    def rank(self, view: LayerView) -> Tensor:
        """Score the visual tokens still alive at a cut, (N_alive,), higher is kept."""
        raise UnsupportedError(f"{type(self).__name__} has cuts but defines neither rank nor select")

    def select(self, view: LayerView) -> Reduction:
        """Decide a cut: by default the `keep` highest of `rank`, in order; ties go to the earlier token."""
        scores = self.rank(view)
        return Reduction(top_indices(scores, view.cut.keep), scores_N=scores)


def top_indices(scores_N: Tensor, keep: int) -> Tensor:
    """Return the indices of the `keep` highest scores in ascending order; ties go to the lower index.

    Args:
        scores_N: finite scores.
        keep: how many, at most N.
    """
    order = torch.argsort(scores_N.float(), descending=True, stable=True)
    return order[:keep].sort().values
