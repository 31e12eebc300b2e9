"""FLOPs by torch and by fvcore: 2 per multiply-add, and both counters agree."""

import builtins
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dpbench.backbones import miniatures
from dpbench.errors import MissingError
from dpbench.measure import flops
from dpbench.measure.flops import count_flops, count_flops_by_fvcore

COUNTERS = pytest.mark.parametrize("count", [count_flops, count_flops_by_fvcore])


@COUNTERS
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_multiply_add_of_a_matrix_product_is_two_flops(count: Callable[..., int], mode: Any) -> None:
    with mode():
        assert count(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7
        assert count(lambda: torch.ones(4, 3, 5) @ torch.ones(4, 5, 7)) == 4 * 2 * 3 * 5 * 7
        assert count(lambda: F.linear(torch.ones(2, 3, 5), torch.ones(7, 5), torch.ones(7))) == 2 * 6 * 5 * 7
        assert count(lambda: torch.einsum("bij,bjk->bik", torch.ones(4, 3, 5), torch.ones(4, 5, 7))) == 4 * 210
        assert count(lambda: F.conv2d(torch.ones(1, 3, 8, 6), torch.ones(5, 3, 2, 2), stride=2)) == 2 * 12 * 5 * 12
        assert count(lambda: torch.ones(3, 5).add(1).softmax(-1).sum()) == 0


@COUNTERS
@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_all_pairs_causal_or_not(count: Callable[..., int], causal: bool) -> None:
    states = torch.ones(1, 2, 9, 4)
    assert count(lambda: F.scaled_dot_product_attention(states, states, states, is_causal=causal)) == 2 * 2 * 2 * 81 * 4


@COUNTERS
def test_grouped_keys_count_once_per_query_head(count: Callable[..., int]) -> None:
    queries, keys = torch.ones(1, 4, 9, 8), torch.ones(1, 2, 9, 8)
    call = lambda: F.scaled_dot_product_attention(queries, keys, keys, enable_gqa=True)  # noqa: E731
    assert count(call) == 2 * 2 * 4 * 81 * 8


@COUNTERS
def test_an_encoder_is_not_hidden_by_its_fused_kernel(count: Callable[..., int]) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer.eval(), 2, enable_nested_tensor=False).eval()
    tokens, before = torch.zeros(1, 10, 16), torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        assert count(lambda: encoder(tokens)) == 2 * (2 * 10 * 16 * (4 * 16 + 2 * 32) + 2 * 2 * 100 * 16)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_fvcores_own_analysis_of_a_traced_decoder_agrees() -> None:
    """`FlopCountAnalysis` is the usual way to count; eager attention needs no handle of ours."""
    decoder = miniatures.model("qwen2_5_vl", torch.float32, "eager").model.language_model.requires_grad_(False)

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, embeds_BLD: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.decoder(inputs_embeds=embeds_BLD, use_cache=False).last_hidden_state
            return hidden

    embeds_BLD = torch.zeros(1, 11, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        by_operator = FlopCountAnalysis(Hidden(), embeds_BLD).unsupported_ops_warnings(False).by_operator()
    with torch.no_grad():
        ours = {count_flops_by_fvcore(lambda: decoder(inputs_embeds=embeds_BLD, use_cache=False))}
        ours.add(count_flops(lambda: decoder(inputs_embeds=embeds_BLD, use_cache=False)))
    assert ours == {2 * sum(by_operator[name] for name in ("linear", "matmul"))}


def test_without_fvcore_the_other_counter_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec, import_module = flops.find_spec, builtins.__import__
    monkeypatch.setattr(flops, "find_spec", lambda name: None if name == "fvcore" else find_spec(name))

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("fvcore"):
            raise ModuleNotFoundError(name)
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert count_flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 210
    with pytest.raises(MissingError, match="pip install fvcore"):
        count_flops_by_fvcore(lambda: torch.ones(3, 5) @ torch.ones(5, 7))
