"""Vectors of a whole answer: the engine drops tokens of a small language model while transformers generates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from dpbench.conformance.vectors.llama import Bare, language_model
from dpbench.conformance.vectors.vector import Vector, configure, differences, distances
from dpbench.engine.dropping import DroppingState
from dpbench.engine.forward import drop_inside_llm
from dpbench.engine.pruned_prompt import PrunedPrompt, validate_cuts
from dpbench.method import Budget, Method

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone

TOLERANCE = 1e-5
"""How far logits and RoPE angles may be from the expected ones, as a share of the largest."""


def check_end_to_end(method: Method, vector: Vector) -> Iterator[str]:
    """Generate, and compare each cut's kept tokens and position ids, then tokens, logits and cache lengths."""
    bare, configured = language_model(vector), configure(method, vector)
    prompt = _build_prompt(configured, vector, len(bare.decoder.layers))
    out, state = _generate(bare, configured, prompt, num_new=len(vector["new_tokens"]))
    yield from differences("cuts", torch.tensor([len(prompt.cuts)]), torch.tensor([_count_stages(vector)]))
    for number in range(len(prompt.cuts)):
        yield from _compare_stage(bare, vector, state, number)
    yield from differences("tokens generated", out.sequences[0], vector.tensor("new_tokens"))
    yield from distances("logits", torch.cat(out.logits), vector.float32("logits"), TOLERANCE)
    lengths = [out.past_key_values.get_seq_length(layer) for layer in range(len(bare.decoder.layers))]
    after_prefill = torch.tensor(lengths) - (len(vector["new_tokens"]) - 1)
    yield from differences("cache lengths after the prefill", after_prefill, vector.tensor("kv_lengths_after_prefill"))


def _build_prompt(method: Method, vector: Vector, num_layers: int) -> PrunedPrompt:
    embeds_LD = vector.float32("inputs_embeds")
    start, num = vector.integer("image_start"), vector.integer("n_visual")
    positions = torch.arange(len(embeds_LD))
    visual_L = (positions >= start) & (positions < start + num)
    return PrunedPrompt(
        embeds_LD, positions[None], visual_L, (), (), validate_cuts(method, num, num_layers, Budget(num))
    )


def _generate(bare: Bare, method: Method, prompt: PrunedPrompt, *, num_new: int) -> tuple[Any, DroppingState]:
    with drop_inside_llm(cast("Backbone", bare), method, [prompt]) as state:
        out = bare.model.generate(
            inputs_embeds=prompt.embeds_LD[None],
            attention_mask=torch.ones(1, len(prompt.embeds_LD), dtype=torch.int64),
            position_ids=prompt.positions_PL,
            max_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out, state


def _count_stages(vector: Vector) -> int:
    return sum(name == "keep_positions" or name.startswith("keep_positions_stage") for name in vector.arrays)


def _compare_stage(bare: Bare, vector: Vector, state: DroppingState, number: int) -> Iterator[str]:
    """Compare the positions kept by one cut, and their RoPE angles.

    A vector with a single cut states no new position ids: positions keep their own.
    """
    row, single = state.stages[number].rows[0], "keep_positions" in vector
    expected = vector.tensor("keep_positions" if single else f"keep_positions_stage{number}")
    yield from differences(f"positions kept by cut {number}", row.columns, expected)
    positions = expected if single else vector.tensor(f"new_position_ids_stage{number}")
    got = state.stages[number].angles
    assert got is not None, "every stage of a prefill has its angles"
    angles = bare.decoder.rotary_emb(vector.float32("inputs_embeds"), positions[None])
    yield from distances(f"angles of the positions behind cut {number}", torch.cat(got), torch.cat(angles), TOLERANCE)
