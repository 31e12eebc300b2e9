"""The decoders that vectors bring the weights of: single attention layers, and whole small language models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from dpbench.conformance.vectors.vector import Vector


@dataclass(frozen=True, slots=True)
class Bare:
    """As much of a backbone as the engine needs to cut a language model that sees no images."""

    model: Any
    mrope: bool = False

    @property
    def decoder(self) -> Any:
        """Return the text model."""
        return self.model.model

    @property
    def core(self) -> Any:
        """Return the text model: there is no tower around it."""
        return self.model.model


def scoring_layers(vector: Vector, num_layers: int) -> Any:
    """Return a decoder each of whose layers has the vector's norm, query and key weights; the rest is of no use.

    Args:
        vector: with `ln_weight`, `q_weight`, `k_weight` and what they are read with.
        num_layers: how many.
    """
    queries, keys, norm = (vector.float32(name) for name in ("q_weight", "k_weight", "ln_weight"))
    heads = vector.integer("n_heads")
    width = len(queries) // heads
    config = LlamaConfig(
        vocab_size=1,
        hidden_size=len(norm),
        intermediate_size=1,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=len(keys) // width,
        head_dim=width,
        rms_norm_eps=float(vector["rms_norm_eps"]),
        rope_parameters=_rope(float(vector["rope_theta"])),
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng([]):
        decoder = LlamaModel(config).eval()
    for layer in decoder.layers:
        layer.input_layernorm.load_state_dict({"weight": norm})
        layer.self_attn.q_proj.load_state_dict({"weight": queries})
        layer.self_attn.k_proj.load_state_dict({"weight": keys})
    return decoder


def language_model(vector: Vector) -> Bare:
    """Return the model that a vector holds whole, in float32, on the kernel that all runs use."""
    stated = json.loads(str(vector["config_json"]))
    rope = _rope(stated.pop("rope_theta", 10000.0))
    config = LlamaConfig(**stated, rope_parameters=rope, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng([]):
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    model.load_state_dict({name[2:]: vector.float32(name) for name in vector.arrays if name.startswith("w.")})
    return Bare(model)


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}
