"""The harness's overhead: dpbench's unpruned prefill and time to first token, compared with bare calls of the model.

    python benchmarks/harness.py                                                    # toy-llava on the CPU
    python benchmarks/harness.py --device cuda --backbone llava-1.5 --weights random --dtype float16

The bare prefill reads the same embeddings; the bare model reads the ids and pixels from transformers' processor. All
four calls run in turn, image after image; numbers are medians.
"""

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py hides the standard library's module

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from tabulate import tabulate

from dpbench.backbones.base import Backbone
from dpbench.engine import forward
from dpbench.machine.device import pick_device
from dpbench.manifest.cell import cells
from dpbench.manifest.loading import load_backbone
from dpbench.manifest.reading import make_manifest
from dpbench.measure.first_token import FirstToken
from dpbench.measure.interleave import Run, interleave
from dpbench.measure.synthetic_prompts import PromptShape
from dpbench.measure.timing import Recorder, clock_of
from dpbench.method import Method


def main() -> None:
    """Measure and print."""
    options = parse_flags()
    entry = {"name": options.backbone} | ({"weights": options.weights} if options.weights else {})
    data = {"name": "harness", "backbone": entry, "methods": ["none"], "protocol": {"dtype": options.dtype}}
    manifest = make_manifest(data, source="benchmarks/harness.py")
    backbone = load_backbone(manifest, pick_device(options.device))
    with torch.inference_mode():
        first_token = FirstToken(backbone, Method(), next(cells(manifest)), PromptShape())
        names = ("bare prefill", "our prefill", "bare model", "our stages")
        calls = (*build_prefills(backbone, first_token), *build_passes(backbone, first_token))
        runs = [build_run(backbone, call) for call in calls]
        all_series = interleave(runs, repetitions=options.repetitions, seconds=options.seconds, warmups=5)
    medians = [median(series.stages()["ttft"]) for series in all_series]
    rows = [
        (name, f"{ms:.2f}", f"{100 * (ms / bare - 1):+.1f} %")
        for name, ms, bare in zip(names, medians, (medians[0], medians[0], medians[2], medians[2]), strict=True)
    ]
    print(tabulate(rows, ("call", "ms", "over bare"), "github"))


def parse_flags() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="toy-llava")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.0)
    return parser.parse_args()


def build_run(backbone: Backbone, call: Callable[[int], Any]) -> Run:
    """Return a run that times one call on the backbone's device."""

    def run(turn: int) -> dict[str, float]:
        recorder = Recorder(clock_of(backbone.device))
        with recorder.range("ttft"):
            call(turn)
        return recorder.ms()

    return run


def build_prefills(backbone: Backbone, first_token: FirstToken) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Return calls of the bare model's prefill and of ours, on the same prompt."""
    for call in first_token.stages(0).values():
        call()
    prompts = list(first_token.pruned_prompts)
    embeds = forward.collate(prompts).embeds_BLD

    def bare(turn: int) -> Any:
        return backbone.model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)

    return bare, lambda turn: forward.prefill(backbone, first_token.method, prompts)


def build_passes(backbone: Backbone, first_token: FirstToken) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Return calls that go from pixels to logits: the bare model's, and our stages."""

    def bare(turn: int) -> Any:
        prompt = first_token.batches[turn % len(first_token.batches)][0]
        return backbone.model(
            input_ids=prompt.ids_L[None].to(backbone.device),
            pixel_values=prompt.pixels[0].values[None],
            use_cache=True,
            logits_to_keep=1,
        )

    return bare, lambda turn: [call() for call in first_token.stages(turn).values()]


if __name__ == "__main__":
    main()
