"""Costs of DiffPrune: soft top-k, the deployed pruner next to prefill, a training step next to the frozen model's.

    python benchmarks/diffprune.py                          # CPU, one thread: toy-llava, and LLaVA-1.5-7B's shapes
    python benchmarks/diffprune.py --device cuda --dtype bfloat16
    python benchmarks/diffprune.py --device cuda --training # images/s and peak memory of llava-1.5, random weights

At 7B shapes one decoder layer is measured and counted 32 times. All numbers are medians.
"""

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py hides the standard library's module

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from dpbench import backbones
from dpbench.backbones.caption_loss import caption_losses
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.objective import Objective, generator_of
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.diffprune.soft_topk import hard_topk_mask, soft_topk
from dpbench.diffprune.sources import ToySource
from dpbench.diffprune.throttler import Gate, throttle
from dpbench.machine.cuda_graph import Graphed
from dpbench.measure.timing import time_stages
from dpbench.method import top_indices

WIDTH, LAYERS, TEXT = 4096, 32, 64
KEEP = 64
GB_LIMIT = 48


def median_ms(call: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    """Return the median milliseconds of a call."""
    return median(time_stages({"call": call}, device, repeats=repeats, warmups=min(3, repeats // 3))["call"])


def run_forward_and_backward(function: Callable[[Tensor], Tensor], scores: Tensor) -> None:
    """Run forward and backward."""
    scores.grad = None
    function(scores).square().sum().backward()


def soft_topk_by_bisection(scores: Tensor, k: float, tau: float) -> Tensor:
    """Compute soft top-k by 64 bisections, differentiated through one Newton step: the baseline of the closed form."""

    def weights(theta: Tensor) -> Tensor:
        offset = (scores.double() - theta) / tau
        tail = (-offset.abs()).exp() / 2
        return torch.where(offset <= 0, tail, 1 - tail)

    with torch.no_grad():
        low, high = scores.double().amin(-1, keepdim=True) - 20 * tau, scores.double().amax(-1, keepdim=True) + 20 * tau
        for _ in range(64):
            middle = (low + high) / 2
            above = weights(middle).sum(-1, keepdim=True) > k
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        theta = (low + high) / 2
        weights_at_theta = weights(theta)
        slope = torch.minimum(weights_at_theta, 1 - weights_at_theta).sum(-1, keepdim=True)
    theta = theta + tau * (weights(theta).sum(-1, keepdim=True) - k) / slope
    return weights(theta).float()


def measure_soft_topk(device: torch.device) -> list[list[object]]:
    """Time forward and backward for 16 rows."""
    rows: list[list[object]] = []
    for size in (576, 2880):
        scores = torch.randn(16, size, device=device, requires_grad=True)
        functions = {
            "closed form (Laplace)": partial(soft_topk, k=KEEP, tau=0.1),
            "sigmoid kernel (bisection)": partial(soft_topk, k=KEEP, tau=0.1, kernel="sigmoid"),
            "64 bisections (Laplace)": partial(soft_topk_by_bisection, k=KEEP, tau=0.1),
        }
        times = {
            name: median_ms(partial(run_forward_and_backward, function, scores), device)
            for name, function in functions.items()
        }
        times["hard mask (a sort, no gradient)"] = median_ms(partial(hard_topk_mask, scores.detach(), KEEP), device)
        base = times["closed form (Laplace)"]
        rows += [[size, name, time, time / base] for name, time in times.items()]
    return rows


class SevenB:
    """One decoder layer of LLaVA-1.5-7B's shape, and the modules that DiffPrune puts before the decoder."""

    def __init__(self, num_visual: int, device: torch.device, dtype: torch.dtype) -> None:
        config = LlamaConfig(
            hidden_size=WIDTH, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=1, vocab_size=32
        )
        self.device, self.num_visual = device, num_visual
        self.repeats = 15 if device.type == "cuda" else 3  # seconds each on a CPU
        self.decoder = LlamaModel(config).to(device, dtype).requires_grad_(False).eval()
        self.size = ScorerSize(width=WIDTH)
        side = round(num_visual**0.5)
        index = torch.arange(num_visual, device=device)[None]
        self.places = index // side, index % side
        self.tokens = torch.randn(1, num_visual, WIDTH, device=device, dtype=dtype)
        self.text = torch.randn(1, TEXT, WIDTH, device=device, dtype=dtype)

    @torch.inference_mode()
    def time_prefill(self, keep: int) -> float:
        """Return the milliseconds of all decoder layers for `keep` visual tokens and the text."""
        embeds = torch.cat([self.tokens[:, :keep], self.text], 1)
        return LAYERS * median_ms(
            lambda: self.decoder(inputs_embeds=embeds, use_cache=False), self.device, self.repeats
        )

    @torch.inference_mode()
    def time_pruner(self, mode: str) -> float:
        """Return the milliseconds of scorer, top-k and gather."""
        scorer: Callable[..., Any] = Scorer(self.size).deploy(self.device, self.tokens.dtype)
        if mode == "compiled":
            scorer = torch.compile(scorer, mode="max-autotune-no-cudagraphs")

        def rank(*inputs: Tensor) -> Tensor:
            return top_indices(scorer(*inputs)[0], KEEP)

        ranker = Graphed(rank) if mode == "graph" else rank
        return median_ms(lambda: self.tokens[0][ranker(self.tokens, *self.places)], self.device, self.repeats)

    def time_training(self) -> tuple[float, float]:
        """Return milliseconds of forward and backward through the frozen decoder, and of what DiffPrune adds."""
        scorer, denoiser = Scorer(self.size).to(self.device), Denoiser(self.size).to(self.device)
        gate = Gate(
            k_R=torch.full((1,), float(KEEP), dtype=torch.float64, device=self.device),
            tau=0.3,
            valid_RN=torch.ones(1, self.num_visual, dtype=torch.bool, device=self.device),
            noise_RND=torch.randn(1, self.num_visual, WIDTH, device=self.device),
            gumbel_RN=torch.zeros(1, self.num_visual, device=self.device),
        )
        embeds = torch.cat([self.tokens, self.text], 1).requires_grad_()

        def frozen() -> None:
            self.decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state.float().square().mean().backward()

        def pruning() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.tokens.dtype == torch.bfloat16):
                logits = scorer(self.tokens, *self.places)
                tokens = denoiser(throttle(logits, self.tokens.float(), gate))
            tokens.float().square().mean().backward()

        return LAYERS * median_ms(frozen, self.device, self.repeats), median_ms(pruning, self.device, self.repeats)


def measure_seven_b(device: torch.device, dtype: torch.dtype) -> tuple[list[list[object]], list[list[object]]]:
    """Time the deployed pruner and prefill, and a training step with and without DiffPrune, at 7B shapes."""
    pruner_rows: list[list[object]] = []
    training_rows: list[list[object]] = []
    for size in (576, 2880) if device.type == "cuda" else (576,):
        shapes = SevenB(size, device, dtype)
        full, short = shapes.time_prefill(size), shapes.time_prefill(KEEP)
        for mode in ("eager", "compiled", "graph") if device.type == "cuda" else ("eager",):
            pruner = shapes.time_pruner(mode)
            pruner_rows.append([size, mode, pruner, full, short, 100 * pruner / full, 100 * pruner / short])
        frozen, added = shapes.time_training()
        training_rows.append([f"7B shapes, N={size}", frozen, added, (frozen + added) / frozen])
    return pruner_rows, training_rows


def measure_toy_step(device: torch.device) -> list[object]:
    """Time a training step of toy-llava, and forward and backward of the frozen model on the same batch."""
    backbone = backbones.load("toy-llava", device=str(device))
    backbone.model.requires_grad_(False)
    size = ScorerSize(width=128, hidden=96, heads=4)
    objective = Objective(backbone, Scorer(size), Denoiser(size), "diffprune", "Describe the image.")
    objective.scorer.to(device), objective.denoiser.to(device)
    batch = objective.encode([ToySource(0)[index] for index in range(16)])
    gate = objective.gate(batch, 16, 0.3, [generator_of(device, place) for place in range(16)])
    visual = [embeds_ND.clone().requires_grad_() for embeds_ND in batch.embeds]

    def frozen() -> None:
        caption_losses(backbone, batch.prompts, batch.features, visual, batch.captions).sum().backward()

    def step() -> None:
        objective.soft_losses(objective.logits(batch), batch, gate).sum().backward()

    times = median_ms(frozen, device), median_ms(step, device)
    return ["toy-llava, 16 images", times[0], times[1] - times[0], times[1] / times[0]]


def measure_training() -> list[list[object]]:
    """Train llava-1.5 with random weights for a few steps at each micro-batch size, within 48 GB."""
    import json

    from dpbench.diffprune.recipe import make_recipe
    from dpbench.diffprune.train import train

    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    torch.cuda.set_per_process_memory_fraction(min(1.0, GB_LIMIT / total))
    rows = []
    for micro in (1, 2, 4, 8, 16):
        settings = {"weights": "random", "data": "toy", "steps": 4, "num_validation": 16, "micro_batch": micro}
        torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            train(make_recipe("llava-1.5", settings), Path(folder) / "out", device="cuda")
            lines = (Path(folder) / "out" / "log.jsonl").read_text().splitlines()
        speed = median(row["images_per_s"] for row in map(json.loads, lines) if "images_per_s" in row)
        rows.append([micro, speed, torch.cuda.max_memory_allocated() / 2**30])
    return rows


def print_table(title: str, rows: list[list[object]], headers: list[str]) -> None:
    """Print a table under a title."""
    print(f"\n## {title}\n\n{tabulate(rows, headers, tablefmt='github', floatfmt='.2f')}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--training", action="store_true", help="only train llava-1.5 with random weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} thread(s)"
    print(f"{name}, torch {torch.__version__}, {options.dtype}")
    if options.training:
        print_table("Training llava-1.5, random weights", measure_training(), ["micro-batch", "images/s", "peak GiB"])
        return
    print_table(
        "Soft top-k, 16 rows, forward and backward",
        measure_soft_topk(device),
        ["N", "algorithm", "ms", "times closed form"],
    )
    pruner_rows, step_rows = measure_seven_b(device, dtype)
    headers = [
        "N",
        "mode",
        "pruner ms",
        "prefill ms",
        f"prefill ms, {KEEP} kept",
        "% of prefill",
        f"% of prefill, {KEEP}",
    ]
    print_table("The deployed pruner at 7B shapes (a layer, 32 times)", pruner_rows, headers)
    headers = ["model", "frozen model ms", "added ms", "step / frozen model"]
    print_table("A training step", [measure_toy_step(device), *step_rows], headers)


if __name__ == "__main__":
    main()
