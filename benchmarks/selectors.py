"""The time of each method's selection, that of the official code's rule, and the share of one decoder layer's time.

    python benchmarks/selectors.py [METHOD ...] [--device cuda] [--repeats 20]

CPU: one thread, float32, the thread's own CPU time (others' work does not count); GPU: float16, CUDA events. Ours and
the official rule take turns on the same image. One line per method, N tokens, width D and K kept: medians of `reduce`
(before the LLM) or of all `select` calls (inside it, at a mean of K), and ours as a share of a Llama decoder layer over
N tokens. "Product alone" is the inner products that both sides read, as one plain product (HoloV's inside its crops,
CDPruner's inside each view, DivPrune's of all pairs). `same` says whether both choose the same rows. Features
are random with a power-law spectrum; N above 576 are views of 576.
"""

from __future__ import annotations

import sys
from pathlib import Path

# a script's folder comes first, where this file would hide the standard library's module of its name
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from benchmarks.official_inside import RULES_INSIDE
from benchmarks.official_rules import PRODUCTS, RULES
from dpbench import registry
from dpbench.engine.decision import has_reduce, has_resize
from dpbench.engine.decoder_view import DecoderView, Projected
from dpbench.measure.timing import clock_of
from dpbench.method import Budget, DecoderInput, Method, Reduction, VisualTokens

KEEPS = {576: (64, 192, 560, 575), 1152: (128,), 2304: (256,), 2880: (320,)}
"""Tokens -> how many are kept: LLaVA-1.5's budgets, LLaVA-NeXT's 64 of each view."""
SIDE = 24
"""Tokens along a view's side."""
WIDTHS = (1024, 4096)
TOWER, HEADS, TEXT, DEPTH = 1024, 16, 64, 32
SETTINGS = {"cdpruner": {"relevance": "none"}}
"""Hyper-parameters with which a method runs without a backbone (CDPruner without its text tower)."""


def features(num: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (N, D) rows whose spectrum falls with the square root of the rank, as that of vision features does."""
    rows = torch.randn(num, 64, device=device) * torch.arange(1, 65, device=device) ** -0.5
    return (rows @ torch.randn(64, width, device=device) + 0.1 * torch.randn(num, width, device=device)).to(dtype)


def image(num: int, width: int, device: torch.device, dtype: torch.dtype) -> VisualTokens:
    """Return one image's tokens: of LLaVA-1.5 (576) or of LLaVA-NeXT (more)."""
    index = torch.arange(num, device=device)
    view_N, in_view_N = index // SIDE**2, index % SIDE**2
    return VisualTokens(
        embeds_ND=features(num, width, device, dtype),
        hidden_NC=features(num, TOWER, device, dtype),
        view_N=view_N,
        row_N=in_view_N // SIDE,
        col_N=in_view_N % SIDE,
        read_N=torch.ones_like(index, dtype=torch.bool),
        slot_N=index,
        generator=torch.Generator().manual_seed(0),
        cls_hidden_VC=features(num // SIDE**2, TOWER, device, dtype),
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


def views_of(
    method: Method, num: int, keep: int, llama: Any, device: torch.device, dtype: torch.dtype
) -> Iterator[DecoderView]:
    """Yield what the method sees at each cut, with as many tokens as are left there."""
    width, left = llama.config.hidden_size, num
    budget = Budget(keep)
    before, after = torch.arange(35, device=device), torch.arange(35 + num, num + TEXT, device=device)
    embeds = features(num + TEXT, width, device, dtype)
    prompt = DecoderInput(embeds, torch.arange(35, 35 + num, device=device), torch.cat([before, after]))
    for stage, cut in enumerate(method.cuts(num, DEPTH, budget)):
        length = left + TEXT
        hidden = features(length, width, device, dtype)
        angles = llama.rotary_emb(hidden[None], torch.arange(length, device=device)[None])
        layer = llama.layers[0]
        ran_already = cut.probe < cut.layer
        yield DecoderView(
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
        left = cut.keep


def select_all(method: Method, views: list[DecoderView]) -> list[Reduction]:
    """Select at every cut, on copies of the views, as a view caches what was computed on it."""
    return [method.select(replace(view)) for view in views]


class ThreadClock:
    """The calling thread's CPU time, for work that is complete when its call returns."""

    def mark(self) -> float:
        """Return the thread's time now, in seconds."""
        return time.thread_time()

    def wait(self, mark: float) -> None:
        """Return at once."""

    def ms_between(self, start: float, stop: float) -> float:
        """Return the difference."""
        return 1000 * (stop - start)


def median_ms(calls: list[Callable[[], Any]], device: torch.device, repeats: int) -> list[float]:
    """Return the median milliseconds of each call; they take turns, and the first turn does not count."""
    clock = clock_of(device) if device.type == "cuda" else ThreadClock()
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(1 + repeats):
        for call, kept in zip(calls, times, strict=True):
            start = clock.mark()
            call()
            stop = clock.mark()
            clock.wait(stop)
            if turn:
                kept.append(clock.ms_between(start, stop))
    return [median(kept) for kept in times]


def layer_ms(llama: Any, num: int, device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Return the median milliseconds of one decoder layer over N visual and 64 text tokens."""
    hidden = features(num + TEXT, llama.config.hidden_size, device, dtype)[None]
    angles = llama.rotary_emb(hidden, torch.arange(num + TEXT, device=device)[None])
    return median_ms([lambda: llama.layers[0](hidden, position_embeddings=angles)], device, repeats)[0]


def are_same(ours: Reduction, official: Reduction) -> bool:
    """Return whether both choose the same rows: the same tokens, and where rows are made, rows that are close."""
    if official.hidden_KC is not None and ours.hidden_KC is not None:
        return torch.allclose(ours.hidden_KC.float(), official.hidden_KC.float(), atol=1e-3, rtol=1e-3)
    return torch.equal(ours.indices_K, official.indices_K)


@dataclass(frozen=True, slots=True)
class Timed:
    """What was measured of one method: milliseconds, None where there is no such side, and whether both sides agree."""

    ours: float
    official: float | None = None
    product: float | None = None
    same: str = ""


def measure(name: str, method: Method, visual: VisualTokens, keep: int, llama: Any, repeats: int) -> Timed:
    """Time ours, the official rule where there is one, and the product that both read, in turns."""
    device, dtype = visual.embeds_ND.device, visual.embeds_ND.dtype
    ours: Callable[[], Any] = partial(method.reduce, visual, keep)
    official: Callable[[], Any] | None = partial(RULES[name], visual, keep) if name in RULES else None
    if not has_reduce(method):
        views = list(views_of(method, len(visual), keep, llama, device, dtype))
        ours, official = partial(select_all, method, views), partial(RULES_INSIDE[name], views)
    if official is None:
        return Timed(median_ms([ours], device, repeats)[0])
    visual.generator.manual_seed(visual.generator.initial_seed())
    pairs = ours(), official()
    mine, theirs = pairs if isinstance(pairs[0], list) else ([pairs[0]], [pairs[1]])
    same = "yes" if all(map(are_same, mine, theirs)) else "no"
    calls = [ours, official, partial(PRODUCTS[name], visual)] if name in PRODUCTS else [ours, official]
    our_ms, official_ms, *product_ms = median_ms(calls, device, repeats)
    return Timed(our_ms, official_ms, product_ms[0] if product_ms else None, same)


def choose_methods(names: list[str]) -> dict[str, Method]:
    """Return the methods that select and need no trained scorer, those named or all."""
    loaded = {name: registry.load(name, SETTINGS.get(name)) for name in names or registry.methods()}
    chosen = {name: method for name, method in loaded.items() if method.untrained() == method}
    return {
        name: method
        for name, method in chosen.items()
        if not has_resize(method) and (has_reduce(method) or method.cuts(576, DEPTH, Budget(64)))
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    methods = choose_methods(options.methods)
    rows: list[tuple[Any, ...]] = []
    with torch.inference_mode():
        for width in WIDTHS:
            llama = decoder(width, device, dtype)
            for num, keeps in KEEPS.items():
                layer = layer_ms(llama, num, device, dtype, max(1, options.repeats // 10))
                visual = image(num, width, device, dtype)
                for name, method in methods.items():
                    for keep in keeps if has_reduce(method) else keeps[:1]:
                        timed = measure(name, method, visual, keep, llama, options.repeats)
                        ratio = timed.official / timed.ours if timed.official else None
                        share = 100 * timed.ours / layer
                        row = (name, width, num, keep, timed.official, timed.ours, ratio, share, timed.product)
                        rows.append((*row, timed.same))
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    print(f"{hardware}, {dtype}, torch {torch.__version__}, {options.repeats} repetitions\n")
    headers = ["method", "width", "tokens", "keep", "official, ms", "ours, ms", "ratio", "% of a decoder layer"]
    headers += ["product alone, ms", "same"]
    formats = ("", ",", ",", "", ".2f", ".2f", ".1f", ".3f", ".2f", "")
    rows.sort(key=lambda row: row[:4])
    print(tabulate(rows, headers, "github", floatfmt=formats))


if __name__ == "__main__":
    main()
