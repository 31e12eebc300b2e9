"""FLOPs: 2 per multiply-add, equal to a closed form and to twice fvcore's count."""

import warnings

import pytest
import torch

from dpbench.backbones.llava import Llava
from dpbench.measure.flops import count_flops


def test_a_matrix_product_is_two_flops_a_multiply_add() -> None:
    assert count_flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def closed_form(tiny: Llava, length: int) -> int:
    """Projections, attention over all pairs (no saving for the causal half), SwiGLU, LM head at one position."""
    config = tiny.model.config.text_config
    width, wide = config.hidden_size, config.intermediate_size
    shared = width * config.num_key_value_heads // config.num_attention_heads
    projections = 2 * length * width * (2 * width + 2 * shared)
    attention = 2 * 2 * length * length * width
    mlp = 3 * 2 * length * width * wide
    head = 2 * width * config.vocab_size
    return config.num_hidden_layers * (projections + attention + mlp) + head


@pytest.mark.parametrize("length", [30, 166])
def test_prefill_equals_the_closed_form(tiny: Llava, length: int) -> None:
    embeds = torch.zeros(1, length, 32, dtype=torch.float64)
    mask, positions = torch.ones(1, length, dtype=torch.int64), torch.arange(length)[None, None]
    assert count_flops(lambda: tiny.logits(embeds, mask, positions, last=True)) == closed_form(tiny, length)


def test_the_towers_linear_maps_are_twice_fvcores_count(tiny: Llava) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        layer = tiny.core.vision_tower.encoder.layers[0].mlp
        tokens = torch.zeros(1, 145, 32, dtype=torch.float64)
        theirs = FlopCountAnalysis(layer, tokens).unsupported_ops_warnings(False).total()
    with torch.no_grad():
        assert count_flops(lambda: layer(tokens)) == 2 * theirs
