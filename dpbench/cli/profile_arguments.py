"""From flags to what `dpbench profile` measures: a manifest and the settings of the measurement. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpbench import backbones, registry
from dpbench.cli.arguments import CellFlags, build_manifest, from_flags, split_numbers
from dpbench.errors import ConfigError
from dpbench.machine.device import pick_device
from dpbench.machine.environment import environment
from dpbench.manifest.schema import Manifest
from dpbench.measure.settings import Configuration, Settings, ordered_methods

EMBEDDED = "toy-llava"
EMBEDDED_KEEP = 16
REPETITIONS = 50
SWEEP_REPETITIONS = 5
"""A sweep's prompts are up to eighty times as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFlags:
    """What `dpbench profile` is given besides cells; None where it was not."""

    batch_size: Sequence[str] = ()
    image_size: str | None = None
    text_tokens: int = 66
    repetitions: int | None = None
    seconds: float | None = None
    warmups: int = 5
    answers: int = 3
    compiled: bool = False
    cuda_graph: bool = False
    sweep: Literal["visual-tokens"] | None = None


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width of HEIGHTxWIDTH, or of one number for a square.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--image-size: {text!r} is not a size in pixels; give 336, or HEIGHTxWIDTH as 672x1008")
    return int(parts[0]), int(parts[-1])


def check_verify(*, verify: bool, flops_only: bool) -> None:
    """Refuse `--verify` without `--flops-only`.

    Raises:
        ConfigError: only FLOPs can be verified.
    """
    if verify and not flops_only:
        raise ConfigError("--verify compares FLOP counters; add --flops-only")


FLOPS_ONLY = "flops"
"""Name of a run without a manifest that only counts; one that measures is named after the device."""


def build_comparison(path: Path | None, flags: CellFlags) -> Manifest:
    """Return what is profiled: a manifest file, or what flags describe.

    By default every method on the embedded backbone, 16 tokens kept.

    Args:
        path: a manifest file or the name of a shipped one.
        flags: describe cells.

    Raises:
        ConfigError: flags that do not go together, or a budget is missing.
    """
    if path is not None:
        return build_manifest(path, flags)
    backbone = flags.backbone or EMBEDDED
    backbones.find(backbone)
    for method in flags.methods:
        registry.find(method)
    needs_budget = list(flags.methods) != ["none"] and not flags.budgets()
    if needs_budget and backbone != EMBEDDED:
        raise ConfigError(f"--backbone {backbone} needs a budget; give --keep K or --prune-rate R")
    keep = [EMBEDDED_KEEP] if needs_budget else flags.keep
    complete = CellFlags(
        params=flags.params,
        backbone=backbone,
        keep=keep,
        prune_rate=flags.prune_rate,
        budget_kind=flags.budget_kind,
        backbone_fields=flags.backbone_fields,
        protocol=flags.protocol,
    )
    return from_flags(FLOPS_ONLY, complete, flags.methods or ordered_methods())


def build_settings(manifest: Manifest, flags: ProfileFlags) -> Settings:
    """Return how the cells are measured; the embedded backbone and sweeps take less time by default.

    Raises:
        ConfigError: a batch size below 1, or an image size that is none.
    """
    embedded = manifest.backbone.name == EMBEDDED
    seconds = 0.0 if flags.sweep else 2.0 if embedded else 10.0
    sizes = split_numbers("--batch-size", flags.batch_size or ["1"], int)
    if min(sizes) < 1:
        raise ConfigError(f"--batch-size: must be at least 1, got {min(sizes)}")
    requested: dict[Configuration, bool] = {"compile": flags.compiled, "cuda-graph": flags.cuda_graph}
    return Settings(
        repetitions=flags.repetitions or (SWEEP_REPETITIONS if flags.sweep else REPETITIONS),
        seconds=seconds if flags.seconds is None else flags.seconds,
        warmups=flags.warmups,
        answers=flags.answers,
        batch_sizes=tuple(sizes),
        image_hw=parse_image_size(flags.image_size),
        text_tokens=flags.text_tokens,
        configurations=("eager", *(name for name, wanted in requested.items() if wanted)),
        sweep=flags.sweep,
    )


def name_after_device(comparison: Manifest, device: str) -> Manifest:
    """Return a run without a manifest under the name of its device: profile- and the GPU, or cpu.

    Torch is imported to find the GPU: everything that can be refused without it is checked before.
    """
    name = environment(pick_device(device)).get("gpu", "cpu")
    return comparison.model_copy(update={"name": "profile-" + re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")})
