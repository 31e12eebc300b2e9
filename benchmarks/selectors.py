"""How long each method's selection takes, and which share of one decoder layer's time that is.

    python benchmarks/selectors.py [--device cuda] [--threads 1] [--repeats 20]

CPU: float32, `perf_counter`; GPU: float16, CUDA events. A line per method, N tokens and width D: median milliseconds of
`reduce` (before the LLM) or of all `select` calls (inside it), and the share of a Llama decoder layer over N tokens.
Features are random with a power-law spectrum; 2,880 tokens are five views of 576.
"""

from __future__ import annotations

import sys

sys.path.pop(0)  # a script's folder comes first, where this file would hide the standard library's module of its name

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
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
"""Where a method needs a backbone: what runs without one (of CDPruner all but its text tower)."""


def features(num: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (N, D) rows whose spectrum falls as one over the square root of the rank, as vision features' does."""
    rows = torch.randn(num, 64, device=device) * torch.arange(1, 65, device=device) ** -0.5
    return (rows @ torch.randn(64, width, device=device) + 0.1 * torch.randn(num, width, device=device)).to(dtype)


def image(num: int, width: int, device: torch.device, dtype: torch.dtype) -> VisualTokens:
    """Return one image's tokens as LLaVA-1.5 (576), a wide native-resolution image or LLaVA-NeXT (2,880) has them."""
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
    """Return one Llama layer of random weights, with its RoPE and norms."""
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
    """Yield one call per cut: the ranking and choice among the tokens that are left there."""
    width, left = llama.config.hidden_size, num
    budget = Budget(num // 4)
    before, behind = torch.arange(35, device=device), torch.arange(35 + num, num + TEXT, device=device)
    whole = features(num + TEXT, width, device, dtype)
    prompt = DecoderInput(whole, torch.arange(35, 35 + num, device=device), torch.cat([before, behind]))
    for stage, cut in enumerate(method.cuts(num, DEPTH, budget)):
        length = left + TEXT
        hidden = features(length, width, device, dtype)
        angles = llama.rotary_emb(hidden[None], torch.arange(length, device=device)[None])
        layer = llama.layers[0]
        ran = cut.probe < cut.layer
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
            kept=Projected(layer.self_attn.q_proj(hidden), layer.self_attn.k_proj(hidden)) if ran else None,
        )
        yield lambda view=view: method.select(_fresh(view))
        left = cut.keep


def _fresh(view: DecoderView) -> DecoderView:
    """Return the view with nothing computed yet: it remembers what it was asked for."""
    return replace(view)


def median_ms(calls: list[Callable[[], Any]], device: torch.device, repeats: int) -> float:
    """Return the median time of running all calls one after another."""
    times = time_stages({"select": lambda: [call() for call in calls]}, device, repeats=repeats, warmups=2)
    return median(times["select"])


def layer_ms(llama: Any, num: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Return the median time of one decoder layer over N visual and 64 text tokens."""
    hidden = features(num + TEXT, llama.config.hidden_size, device, dtype)[None]
    angles = llama.rotary_emb(hidden, torch.arange(num + TEXT, device=device)[None])
    return median_ms([lambda: llama.layers[0](hidden, position_embeddings=angles)], device, repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    loaded = {name: registry.load(name, SETTINGS.get(name)) for name in registry.methods()}
    methods = {name: each for name, each in loaded.items() if each.untrained() == each}  # diffprune.py times scorers
    rows = []
    with torch.inference_mode():
        for width in WIDTHS:
            llama = decoder(width, device, dtype)
            for num in GRIDS:
                layer = layer_ms(llama, num, device, dtype, max(1, given.repeats // 10))
                visual = image(num, width, device, dtype)
                for name, method in methods.items():
                    keep = KEEP * (num // (GRIDS[num][0] * GRIDS[num][1]))
                    calls = list(selections(method, num, llama, device, dtype))
                    if has_reduce(method):
                        calls = [lambda m=method, v=visual, k=keep: m.reduce(v, k)]
                    if calls and not has_resize(method):
                        spent = median_ms(calls, device, given.repeats)
                        rows.append((name, num, width, spent, 100 * spent / layer))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {given.threads} thread(s)"
    print(f"{where}, {dtype}, torch {torch.__version__}, {given.repeats} repetitions\n")
    heads = ["method", "N", "D", "median ms", "% of a decoder layer"]
    print(tabulate(sorted(rows), heads, "github", floatfmt=(None, ",", ",", ".2f", ".2f")))


if __name__ == "__main__":
    main()
