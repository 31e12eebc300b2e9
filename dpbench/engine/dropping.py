"""Drop visual tokens between decoder layers, with temporary forward hooks.

Nothing is patched: these are forward pre-hooks on the decoder and its layers. During prefill, the hook before a cut's
layer asks the method, gathers the hidden states of the kept rows, and gives this and all later layers the matching
RoPE angles and mask; each layer's cache then has its own length. During decoding, those layers get the mask's columns
for what their cache holds and, if positions are renumbered, angles moved back by the number of dropped rows.

The method decides once per prompt. Without a cache every step is a prefill; the tokens generated so far are left out
of the decision, so that it is the same at every step.

Shape letters: R rows of the batch (samples, times beams), L positions of a stage, D the LLM's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from dpbench.backbones.base import Backbone
from dpbench.engine.decoder_view import DecoderView, Projected
from dpbench.engine.remaining_rows import RowLayout, Stage, decode_mask, pad_rows, prefill_mask, select_rows
from dpbench.errors import UnsupportedError
from dpbench.machine import profiler_ranges
from dpbench.method import Cut, DecoderInput, Method, Reduction


@dataclass(frozen=True, slots=True)
class PromptLayout:
    """Where the text and the visual rows of one prompt are, and where it is cut.

    Attributes:
        text_index: int64 positions of the text, rising.
        visual_index_N: int64 positions of the visual rows, rising.
        cuts: the method's cuts for this prompt.
    """

    text_index: Tensor
    visual_index_N: Tensor
    cuts: tuple[Cut, ...]

    @property
    def length(self) -> int:
        """Return the prompt's length."""
        return len(self.text_index) + len(self.visual_index_N)


@dataclass(slots=True)
class DroppingState:
    """The state of one prompt batch while it is cut."""

    backbone: Backbone
    method: Method
    layouts: Sequence[PromptLayout]
    stages: list[Stage] = field(default_factory=list)
    projected: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    embeds: Tensor | None = None
    positions: Tensor | None = None
    past: int = 0
    decode_angles: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    violations: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Return the padded length of the prompts."""
        return max(layout.length for layout in self.layouts)

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers that are cut before, the same for every prompt."""
        return tuple(cut.layer for cut in self.layouts[0].cuts)

    def kept_rows(self) -> list[list[Tensor]]:
        """Return per prompt and cut which of its visual rows were kept, -1 for merged ones.

        Raises:
            ValueError: the method returned a bad score or index (a bug in the method); waits for the device.
        """
        for what, found in self.violations.items():
            if bool(torch.stack(found).any()):
                raise ValueError(f"{type(self.method).__name__}.select: {what}")
        num_beams = max(1, len(self.stages[0].rows) // len(self.layouts)) if self.stages else 1
        return [[stage.rows[n * num_beams].token for stage in self.stages] for n in range(len(self.layouts))]


@contextmanager
def apply_cuts(backbone: Backbone, method: Method, layouts: Sequence[PromptLayout]) -> Iterator[DroppingState]:
    """Apply the cuts to whatever the backbone runs on this left-padded batch of prompts; hooks are always removed.

    Args:
        backbone: its decoder gets the hooks.
        method: bound to the backbone.
        layouts: one per prompt, all with cuts before the same layers.

    Raises:
        UnsupportedError: inside the block, what this engine cannot do.
    """
    state = DroppingState(backbone, method, layouts)
    decoder = backbone.decoder
    with ExitStack() as stack:

        def add(handle: Any) -> None:
            stack.callback(handle.remove)

        if state.layers:
            add(backbone.core.register_forward_pre_hook(_refuse_later_images, with_kwargs=True))
            add(decoder.register_forward_pre_hook(_begin(state), with_kwargs=True))
        for probe in {cut.probe for cut in layouts[0].cuts if cut.probe < cut.layer}:
            for name in ("q_proj", "k_proj"):
                projection = getattr(decoder.layers[probe].self_attn, name)
                add(projection.register_forward_hook(_keep_projected(state, probe, name)))
        for number, layer in enumerate(decoder.layers):
            stage = sum(layer_cut <= number for layer_cut in state.layers) - 1
            if stage >= 0:
                hook = _before_layer(state, stage, starts=number in state.layers)
                add(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield state


def _refuse_later_images(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    if kwargs.get("pixel_values") is not None and cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedError("cuts are decided once: an image in a later turn would stay whole; start a new prompt")


def _begin(state: DroppingState) -> Any:
    """Before the decoder runs: reset the state for a new prefill, and raise for what cannot be cut."""

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        embeds, cache = kwargs["inputs_embeds"], kwargs.get("past_key_values")
        _check_cache(cache)
        state.past = cache.get_seq_length() if cache is not None else 0
        state.embeds, state.positions = embeds, kwargs.get("position_ids")
        state.decode_angles.clear()
        if state.past == 0:
            _check_prefill(state, embeds)
            state.stages.clear()
            state.projected.clear()
        elif not state.stages or state.past < state.length:
            raise UnsupportedError(
                "cuts need the whole prompt in one prefill: the cache holds only a part of it, or another prompt's; "
                "switch prefill_chunk_size off and give an empty cache"
            )

    return hook


def _check_cache(cache: Any) -> None:
    if cache is not None and not (type(cache) is DynamicCache and not any(cache.is_sliding)):
        raise UnsupportedError(
            f"cuts need a DynamicCache whose layers hold everything, found {type(cache).__name__}: "
            "after a cut its layers differ in length; remove cache_implementation"
        )


def _check_prefill(state: DroppingState, embeds: Tensor) -> None:
    if embeds.shape[0] % len(state.layouts):
        raise UnsupportedError(f"cuts were prepared for {len(state.layouts)} prompts, {embeds.shape[0]} rows came")
    if embeds.shape[1] < state.length:
        raise UnsupportedError(
            f"cuts need the whole prompt in one prefill: {embeds.shape[1]} of {state.length} positions came; "
            "switch prefill_chunk_size off"
        )


def _keep_projected(state: DroppingState, probe: int, name: str) -> Any:
    def hook(_module: Any, _args: Any, output: Tensor) -> None:
        if state.past == 0:
            state.projected.setdefault(probe, {})[name] = output

    return hook


def _before_layer(state: DroppingState, stage: int, *, starts: bool) -> Any:
    """Before a layer behind a cut: cut where it starts the stage, then give it the stage's angles and mask."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs.pop("hidden_states")
        mask, angles = kwargs["attention_mask"], kwargs["position_embeddings"]
        _check_causal(state, mask, hidden)
        if state.past == 0:
            if starts:
                with profiler_ranges.marked("rank"):
                    hidden = _start_stage(state, stage, hidden, mask, angles)
            now = state.stages[stage]
            changed = {"attention_mask": now.mask, "position_embeddings": now.angles}
        else:
            num_queries = hidden.shape[1]
            num_new = state.past + num_queries - state.length
            mask = decode_mask(state.stages[stage], mask, length=state.length, num_new=num_new, num_queries=num_queries)
            changed = {"attention_mask": mask, "position_embeddings": _decode_angles(state, stage, hidden, angles)}
        return (hidden, *args[1:]), kwargs | changed | {"position_ids": None}

    return hook


def _check_causal(state: DroppingState, mask: Tensor | None, hidden: Tensor) -> None:
    kernel = state.backbone.decoder.config._attn_implementation
    if kernel not in ("sdpa", "eager"):
        raise UnsupportedError(f"cuts run on sdpa or eager attention, found {kernel!r}; load with --attention sdpa")
    if kernel == "eager" and mask is None and hidden.shape[1] > 1:
        raise UnsupportedError("eager attention without a mask is not causal; give one, or load with sdpa")


def _start_stage(
    state: DroppingState, number: int, hidden: Tensor, mask: Tensor | None, angles: tuple[Tensor, Tensor]
) -> Tensor:
    """Let the method decide for each row and lay out what is left; returns the hidden states the layer reads."""
    before = state.stages[number - 1] if number else _whole(state, hidden)
    # generate() repeats each prompt for its beams, so several rows of the batch share one prompt
    num_beams = len(before.rows) // len(state.layouts)
    current = before.angles or angles
    rows, kept = [], []
    for r, row in enumerate(before.rows):
        layout = state.layouts[r // num_beams]
        pad = hidden.shape[1] - len(row.columns)
        view = _view(state, number, layout, r, row, pad, hidden, current)
        reduction = state.method.select(view)
        _check_selected(state.method, reduction, layout.cuts[number], len(row.visual))
        reduction = _guarded(state, reduction, len(row.visual))
        chosen, rest = select_rows(row, reduction)
        states = hidden[r, pad:].index_select(0, chosen)
        if reduction.embeds_KD is not None:
            states = states.index_copy(0, rest.visual, reduction.embeds_KD.to(states.dtype))
        rows.append(rest)
        kept.append(states)
    stage = pad_rows(rows, [len(layout.visual_index_N) for layout in state.layouts for _ in range(num_beams)])
    state.stages.append(stage)
    stage.angles = _prefill_angles(state, stage, hidden, angles)
    stage.mask = prefill_mask(stage, mask)
    # rows may keep different counts: pad on the left again, as `pad_rows` did for their columns
    return torch.stack([torch.nn.functional.pad(s, (0, 0, stage.columns_RL.shape[1] - len(s), 0)) for s in kept])


def _whole(state: DroppingState, hidden: Tensor) -> Stage:
    """Return the stage before the first cut: the padded prompt, and behind it what was generated without a cache."""
    num_beams, total = hidden.shape[0] // len(state.layouts), hidden.shape[1]
    extra = torch.arange(state.length, total, device=hidden.device)
    rows = []
    for layout in state.layouts:
        pad = state.length - layout.length
        text = torch.cat([layout.text_index.to(hidden.device), extra - pad])
        visual = layout.visual_index_N.to(hidden.device)
        columns = torch.arange(pad, total, device=hidden.device)
        rows += [RowLayout(text, visual, columns, torch.arange(len(visual), device=hidden.device))] * num_beams
    return Stage(rows, torch.empty(0), None, [0] * len(rows))


def _view(
    state: DroppingState,
    number: int,
    layout: PromptLayout,
    r: int,
    row: RowLayout,
    pad: int,
    hidden: Tensor,
    angles: tuple[Tensor, Tensor],
) -> DecoderView:
    """Return what the method sees: the prompt only, without padding."""
    assert state.embeds is not None
    num_generated = state.embeds.shape[1] - state.length
    stop = hidden.shape[1] - num_generated
    wanted = layout.cuts[number]
    seen = state.projected.get(wanted.probe) if wanted.probe < wanted.layer else None
    cos, sin = (part[r if len(part) > 1 else 0, pad:stop].to(hidden.device) for part in angles)
    embeds = state.embeds[r].to(hidden.device)
    text_index, visual_index_N = layout.text_index.to(hidden.device), layout.visual_index_N.to(hidden.device)
    return DecoderView(
        cut=wanted,
        stage=number,
        hidden_LD=hidden[r, pad:stop],
        visual_index_N=row.visual,
        text_index=row.text[: len(row.text) - num_generated],
        embeds_LD=embeds.index_select(0, row.columns[: stop - pad]),
        prompt=DecoderInput(embeds[state.length - layout.length : state.length], visual_index_N, text_index),
        decoder=state.backbone.decoder,
        angles=(cos, sin),
        kept=Projected(seen["q_proj"][r, pad:stop], seen["k_proj"][r, pad:stop]) if seen else None,
    )


def _check_selected(method: Method, reduction: Reduction, wanted: Cut, num_visual: int) -> None:
    """Raise if a decision has the wrong size; its content is not read, which would wait for the device."""
    count = len(reduction.indices_K)
    if count > min(wanted.keep, num_visual):
        raise ValueError(f"{type(method).__name__}.select: {count} rows at a cut to {wanted.keep} of {num_visual}")
    if reduction.hidden_KC is not None:
        raise ValueError(f"{type(method).__name__}.select: hidden_KC is tower space; inside the LLM give embeds_KD")


def _guarded(state: DroppingState, reduction: Reduction, num_visual: int) -> Reduction:
    """Clamp indices into range; record violations and NaN scores, to be raised later without a device sync here.

    An index out of range would make every later call on a GPU fail, those of other methods too.
    """
    indices, scores = reduction.indices_K, reduction.scores_N
    inside = indices.clamp(-1, num_visual - 1)
    state.violations.setdefault("an index is not one of the visual rows", []).append((inside != indices).any())
    if scores is not None:
        state.violations.setdefault("scores are NaN", []).append(scores.isnan().any())
    return replace(reduction, indices_K=inside)


def _renumbers(state: DroppingState) -> bool:
    """Return True if kept tokens get consecutive position ids (never with M-RoPE)."""
    return state.method.positions == "compact" and not state.backbone.mrope


def _prefill_angles(
    state: DroppingState, stage: Stage, hidden: Tensor, angles: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    if _renumbers(state):
        length = stage.columns_RL.shape[1]
        positions = torch.arange(length, device=hidden.device)[None].expand(len(stage.rows), -1)
        if stage.valid_RL is not None:
            positions = (stage.valid_RL.cumsum(-1) - 1).clamp(min=0)
        return state.backbone.decoder.rotary_emb(hidden, positions)  # type: ignore[no-any-return]
    index = stage.columns_RL[..., None].to(angles[0].device)
    cos, sin = (part.expand(len(stage.rows), -1, -1).gather(1, index.expand(-1, -1, part.shape[-1])) for part in angles)
    return cos, sin


def _decode_angles(
    state: DroppingState, number: int, hidden: Tensor, angles: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the new tokens' angles, moved back by what was dropped where positions are renumbered."""
    if not _renumbers(state):
        return angles
    if number not in state.decode_angles:
        assert state.positions is not None, "generate() always gives position ids"
        dropped = torch.tensor(state.stages[number].dropped_R, device=state.positions.device)
        moved = state.positions - dropped[:, None]
        state.decode_angles[number] = state.backbone.decoder.rotary_emb(hidden, moved.to(hidden.device))
    return state.decode_angles[number]
