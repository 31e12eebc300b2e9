"""The time of each method's selection, and its share of one decoder layer's time.

    python benchmarks/selectors.py [--device cuda] [--threads 1] [--repeats 20]

CPU: float32, `perf_counter`; GPU: float16, CUDA events. One line per method, N tokens and width D: median time of
`reduce` (before the LLM) or of all `select` calls (inside it), and the share of a Llama decoder layer over N tokens.
Features are random with a power-law spectrum; 2,880 tokens are five views of 576.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # a script's folder comes first, where this file would hide the standard library's module of its name

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from dpbench import registry
from dpbench.engine.decision import has_reduce, has_resize
from dpbench.engine.decoder_view import DecoderView, Projected
from dpbench.measure.timing import time_stages
from dpbench.method import Budget, DecoderInput, Method, VisualTokens

GRIDS = {576: (24, 24), 1440: (36, 40), 2880: (24, 24)}
WIDTHS = (1024, 4096)
TOWER, HEADS, TEXT, KEEP, DEPTH = 1024, 16, 64, 64, 32
SETTINGS = {"cdpruner": {"relevance": "none"}}
"""Hyper-parameters with which a method runs without a backbone (CDPruner without its text tower)."""


def features(num: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (N, D) rows whose spectrum falls with the square root of the rank, as that of vision features does."""
    rows = torch.randn(num, 64, device=device) * torch.arange(1, 65, device=device) ** -0.5
    return (rows @ torch.randn(64, width, device=device) + 0.1 * torch.randn(num, width, device=device)).to(dtype)


def image(num: int, width: int, device: torch.device, dtype: torch.dtype) -> VisualTokens:
    """Return one image's tokens: of LLaVA-1.5 (576), of a wide native-resolution image, or of LLaVA-NeXT (2,880)."""
    rows, columns = GRIDS[num]
    index = torch.arange(num, device=device)
    in_view = index % (rows * columns)
    return VisualTokens(
        embeds_ND=features(num, width, device, dtype),
        hidden_NC=features(num, TOWER, device, dtype),
        view_N=index // (rows * columns),
        row_N=in_view // columns,
        col_N=in_view % columns,
        read_N=torch.ones_like(index, dtype=torch.bool),
        slot_N=index,
        generator=torch.Generator().manual_seed(0),
        cls_hidden_VC=features(num // (rows * columns), TOWER, device, dtype),
        cls_attention={layer: (torch.randn(HEADS, num, device=device) * 2).softmax(-1) for layer in (0, 22)},
        received_attention_N=torch.rand(num, device=device),
        keys_Nd=features(num, TOWER // HEADS, device, dtype),
    )


def decoder(width: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a Llama decoder of one layer with random weights."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=1,
        num_attention_heads=width // 128,
    )
    with torch.device(device):
        return LlamaModel._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def selections(
    method: Method, num: int, llama: Any, device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[], Any]]:
    """Yield one call per cut, which ranks the tokens left there and selects among them."""
    width, left = llama.config.hidden_size, num
    budget = Budget(num // 4)
    before, after = torch.arange(35, device=device), torch.arange(35 + num, num + TEXT, device=device)
    embeds = features(num + TEXT, width, device, dtype)
    prompt = DecoderInput(embeds, torch.arange(35, 35 + num, device=device), torch.cat([before, after]))
    for stage, cut in enumerate(method.cuts(num, DEPTH, budget)):
        length = left + TEXT
        hidden = features(length, width, device, dtype)
        angles = llama.rotary_emb(hidden[None], torch.arange(length, device=device)[None])
        layer = llama.layers[0]
        ran_already = cut.probe < cut.layer
        view = DecoderView(
            cut=replace(cut, layer=1, probe=0),
            stage=stage,
            hidden_LD=hidden,
            visual_index_N=torch.arange(35, 35 + left, device=device),
            text_index=torch.cat([torch.arange(35), torch.arange(35 + left, length)]).to(device),
            embeds_LD=hidden,
            prompt=prompt,
            decoder=llama,
            angles=(angles[0][0], angles[1][0]),
            kept=Projected(layer.self_attn.q_proj(hidden), layer.self_attn.k_proj(hidden)) if ran_already else None,
        )
        yield partial(_select, method, view)
        left = cut.keep


def _select(method: Method, view: DecoderView) -> Any:
    """Select on a copy of the view, as a view caches what was computed on it."""
    return method.select(replace(view))


def median_ms(calls: list[Callable[[], Any]], device: torch.device, repeats: int) -> float:
    """Return the median milliseconds of all calls one after another."""
    times = time_stages({"select": lambda: [call() for call in calls]}, device, repeats=repeats, warmups=2)
    return median(times["select"])


def layer_ms(llama: Any, num: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Return the median milliseconds of one decoder layer over N visual and 64 text tokens."""
    hidden = features(num + TEXT, llama.config.hidden_size, device, dtype)[None]
    angles = llama.rotary_emb(hidden, torch.arange(num + TEXT, device=device)[None])
    return median_ms([lambda: llama.layers[0](hidden, position_embeddings=angles)], device, repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    loaded = {name: registry.load(name, SETTINGS.get(name)) for name in registry.methods()}
    methods = {
        name: method for name, method in loaded.items() if method.untrained() == method
    }  # without trained scorers
    rows = []
    with torch.inference_mode():
        for width in WIDTHS:
            llama = decoder(width, device, dtype)
            for num in GRIDS:
                layer = layer_ms(llama, num, device, dtype, max(1, options.repeats // 10))
                visual = image(num, width, device, dtype)
                for name, method in methods.items():
                    keep = KEEP * (num // (GRIDS[num][0] * GRIDS[num][1]))
                    calls = list(selections(method, num, llama, device, dtype))
                    if has_reduce(method):
                        calls = [partial(method.reduce, visual, keep)]
                    if calls and not has_resize(method):
                        ms = median_ms(calls, device, options.repeats)
                        rows.append((name, num, width, ms, 100 * ms / layer))
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} thread(s)"
    print(f"{hardware}, {dtype}, torch {torch.__version__}, {options.repeats} repetitions\n")
    headers = ["method", "N", "D", "median ms", "% of a decoder layer"]
    print(tabulate(sorted(rows), headers, "github", floatfmt=("", ",", ",", ".2f", ".2f")))


if __name__ == "__main__":
    main()
