"""Vectors of a whole answer: a small language model is cut by the engine while transformers generates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from dpbench.conformance.vectors.llama import Bare, language_model
from dpbench.conformance.vectors.vector import Vector, configure, differences, distances
from dpbench.engine.dropping import DroppingState
from dpbench.engine.forward import prune
from dpbench.engine.pruned_prompt import PrunedPrompt, validate_cuts
from dpbench.method import Budget, Method

if TYPE_CHECKING:
    from dpbench.backbones.base import Backbone

TOLERANCE = 1e-5
"""How far logits, and angles for position ids, may be from what is wanted, of the largest one."""


def check_end_to_end(method: Method, vector: Vector) -> Iterator[str]:
    """Generate, and compare what each cut keeps, its position ids, the tokens, the logits and the caches' lengths."""
    bare, configured = language_model(vector), configure(method, vector)
    spliced = _prompt(configured, vector, len(bare.decoder.layers))
    out, state = _generate(bare, configured, spliced, num_new=len(vector["new_tokens"]))
    yield from differences("cuts", torch.tensor([len(spliced.cuts)]), torch.tensor([_num_stages(vector)]))
    for number in range(len(spliced.cuts)):
        yield from _stage(bare, vector, state, number)
    yield from differences("tokens generated", out.sequences[0], vector.tensor("new_tokens"))
    yield from distances("logits", torch.cat(out.logits), vector.float32("logits"), TOLERANCE)
    lengths = [out.past_key_values.get_seq_length(layer) for layer in range(len(bare.decoder.layers))]
    after_prefill = torch.tensor(lengths) - (len(vector["new_tokens"]) - 1)
    yield from differences("cache lengths after the prefill", after_prefill, vector.tensor("kv_lengths_after_prefill"))


def _prompt(method: Method, vector: Vector, num_layers: int) -> PrunedPrompt:
    embeds_LD = vector.float32("inputs_embeds")
    start, num = vector.integer("image_start"), vector.integer("n_visual")
    positions = torch.arange(len(embeds_LD))
    visual_L = (positions >= start) & (positions < start + num)
    return PrunedPrompt(
        embeds_LD, positions[None], visual_L, (), (), validate_cuts(method, num, num_layers, Budget(num))
    )


def _generate(bare: Bare, method: Method, spliced: PrunedPrompt, *, num_new: int) -> tuple[Any, DroppingState]:
    with prune(cast("Backbone", bare), method, [spliced]) as state:
        out = bare.model.generate(
            inputs_embeds=spliced.embeds_LD[None],
            attention_mask=torch.ones(1, len(spliced.embeds_LD), dtype=torch.int64),
            position_ids=spliced.positions_PL,
            max_new_tokens=num_new,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return out, state


def _num_stages(vector: Vector) -> int:
    return sum(name == "keep_positions" or name.startswith("keep_positions_stage") for name in vector.arrays)


def _stage(bare: Bare, vector: Vector, state: DroppingState, number: int) -> Iterator[str]:
    """Compare what is left behind one cut, and the angles of its position ids; without any stated, they are kept."""
    row, single = state.stages[number].rows[0], "keep_positions" in vector
    wanted = vector.tensor("keep_positions" if single else f"keep_positions_stage{number}")
    yield from differences(f"positions kept by cut {number}", row.columns, wanted)
    positions = wanted if single else vector.tensor(f"new_position_ids_stage{number}")
    got = state.stages[number].angles
    assert got is not None, "every stage of a prefill has its angles"
    angles = bare.decoder.rotary_emb(vector.float32("inputs_embeds"), positions[None])
    yield from distances(f"angles of the positions behind cut {number}", torch.cat(got), torch.cat(angles), TOLERANCE)
