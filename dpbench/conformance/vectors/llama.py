"""Decoders with weights from a vector: single attention layers, and whole small language models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from dpbench.conformance.vectors.vector import Vector


@dataclass(frozen=True, slots=True)
class Bare:
    """The part of a backbone that the engine needs to drop tokens of a language model without a vision tower."""

    model: Any
    mrope: bool = False

    @property
    def decoder(self) -> Any:
        """Return the text model."""
        return self.model.model

    @property
    def core(self) -> Any:
        """Return the text model; without a tower it is the whole core."""
        return self.model.model


def scoring_layers(vector: Vector, num_layers: int) -> Any:
    """Return a decoder whose layers all have the vector's norm, query and key weights; its other weights are random.

    Args:
        vector: holds `ln_weight`, `q_weight`, `k_weight`, `n_heads`, `rms_norm_eps` and `rope_theta`.
        num_layers: layers of the decoder.
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
        rope_parameters=_rope_parameters(float(vector["rope_theta"])),
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
    """Return the language model that a vector holds, in float32, with SDPA attention like every run."""
    settings = json.loads(str(vector["config_json"]))
    rope = _rope_parameters(settings.pop("rope_theta", 10000.0))
    config = LlamaConfig(**settings, rope_parameters=rope, bos_token_id=None, eos_token_id=None)
    with torch.random.fork_rng([]):
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32).eval()
    model.load_state_dict({name[2:]: vector.float32(name) for name in vector.arrays if name.startswith("w.")})
    return Bare(model)


def _rope_parameters(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}
