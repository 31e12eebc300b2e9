"""What a profile is asked for: which cells, how they are run, how long. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpbench import backbones, flags, registry, storage
from dpbench.errors import ConfigError
from dpbench.manifest import Cell, Manifest, cells
from dpbench.manifest_file import make_manifest

EMBEDDED = "toy-llava"
EMBEDDED_KEEP = 16
REPETITIONS = 50
SWEEP_REPETITIONS = 5
"""A sweep's prompts are up to eighty times as long."""
Configuration = Literal["eager", "compile", "cuda-graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How cells are profiled.

    Attributes:
        repetitions: kept of each, at least.
        seconds: spent in each, at least.
        warmups: run before, at least, and until the times are stable.
        answers: whole answers decoded, each 32 tokens behind the first; decoding takes long and scatters little.
        batch_sizes: prompts at once.
        image_hw: pixels of the images, height and width, or None for what fills the backbone.
        text_tokens: positions of a prompt outside its images.
        configurations: how the model is run; each is a table of its own.
        sweep: the quantity that is varied, or None.
    """

    repetitions: int = 50
    seconds: float = 10.0
    warmups: int = 5
    answers: int = 3
    batch_sizes: tuple[int, ...] = (1,)
    image_hw: tuple[int, int] | None = None
    text_tokens: int = 66
    configurations: tuple[Configuration, ...] = ("eager",)
    sweep: Literal["visual-tokens"] | None = None


def image_size(text: str | None) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH, or one number for a square.

    Raises:
        ConfigError: it is neither.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"--image-size: {text!r} is no size in pixels; give 336, or HEIGHTxWIDTH as 672x1008")
    return int(parts[0]), int(parts[-1])


def numbers(flag: str, given: Iterable[str], kind: type[int] | type[float]) -> list[Any]:
    """Read an option that may come several times or hold several values with commas between.

    Raises:
        ConfigError: a value is no such number.
    """
    found = []
    for part in names(given):
        try:
            found.append(kind(part))
        except ValueError:
            what = "whole number" if kind is int else "number"
            raise ConfigError(f"{flag}: {part!r} is no {what}; give one or several with commas between") from None
    return found


def names(given: Iterable[str]) -> list[str]:
    """Read an option that may come several times or hold several names with commas between."""
    return [part.strip() for entry in given for part in entry.split(",") if part.strip()]


def manifest_of(
    *,
    name: str,
    backbone: str | None,
    placement: dict[str, Any],
    protocol: dict[str, Any],
    methods: Sequence[str],
    params: dict[str, Any],
    keep: Sequence[int],
    prune_rate: Sequence[float],
    kind: str | None,
) -> Manifest:
    """Return the comparison that flags describe: by default the embedded backbone, all methods, 16 tokens kept.

    Raises:
        ConfigError: flags that do not go together, or a budget is missing.
    """
    backbone = backbone or EMBEDDED
    backbones.find(backbone)
    if keep and prune_rate:
        raise ConfigError("--keep and --prune-rate both set the budget; give one of them")
    if not keep and not prune_rate and backbone == EMBEDDED and list(methods) != ["none"]:
        keep = [EMBEDDED_KEEP]
    if not keep and not prune_rate and list(methods) != ["none"]:
        raise ConfigError(f"--backbone {backbone} needs a budget; give --keep K or --prune-rate R")
    budget: dict[str, Any] = {"keep": list(keep)} if keep else {"prune_rate": list(prune_rate)}
    if kind is not None:
        budget["kind"] = kind
    if params and len(methods) != 1:
        raise ConfigError("--param belongs to one method; give one --method, or a manifest")
    chosen = [{"name": each, "params": params} for each in methods or ordered_methods()]
    data: dict[str, Any] = {
        "name": name,
        "backbone": {"name": backbone, **placement},
        "methods": chosen,
        "protocol": protocol,
    }
    return make_manifest(data | ({"budgets": budget} if keep or prune_rate else {}), source="command line")


def once_each(manifest: Manifest) -> list[Cell]:
    """Return one cell per method and budget; tasks and seeds make no difference to time and FLOPs."""
    task, seed = manifest.tasks[0], manifest.protocol.seeds[0]
    return [cell for cell in cells(manifest) if cell.task == task and cell.seed == seed]


def ordered_methods() -> list[str]:
    """Return all methods, the unpruned model first."""
    return sorted(registry.methods(), key=lambda each: (each != "none", each))


def steps(backbone: str, upto: int = 11_520) -> list[tuple[int, tuple[int, int] | None]]:
    """Return a sweep over visual tokens as numbers of images, and a smaller grid for the first step where there is one.

    144 (twelve by twelve, where towers have more), then one image's own number times 1, 2, 4, ... up to 11,520.
    """
    per_image = backbones.find(backbone).num_visual
    if per_image is None:
        raise ConfigError(f"--sweep visual-tokens: {backbone} has no fixed number of them; vary --image-size instead")
    most = upto // per_image
    counts = [2**step for step in range(most.bit_length())]
    whole: list[tuple[int, tuple[int, int] | None]] = [(count, None) for count in counts if count < most]
    return ([(1, (12, 12))] if per_image > 144 else []) + [*whole, (most, None)]


_LISTS = ("method", "keep", "prune_rate", "batch_size")


def profile(options: Mapping[str, Any]) -> str:
    """Carry out `dpbench profile`, given its options by name, and return its tables.

    Raises:
        ConfigError: options that do not go together.
        MissingError: weights are not there.
    """
    wanted, settings = requested(options)
    if options["flops_only"]:
        return _counted(wanted, settings)
    storage.check_writable(options["out"])
    from dpbench.measure.profile import profile_manifest
    from dpbench.report import efficiency, render

    profiles = profile_manifest(wanted, options["out"], settings, device=options["device"])
    return render.render_all(efficiency.sections(profiles), "markdown")


def _counted(wanted: Manifest, settings: Settings) -> str:
    """Return the table of FLOPs, with what they include below it."""
    from tabulate import tabulate

    from dpbench.measure.flops_only import flops_only, notes, table

    rows = flops_only(wanted, text_tokens=settings.text_tokens, image_hw=settings.image_hw)
    body = tabulate(table(rows), headers="keys", tablefmt="github", stralign="right", disable_numparse=True)
    return "\n".join([body, "", *(f"- {note}" for note in notes(rows))])


def requested(options: Mapping[str, Any]) -> tuple[Manifest, Settings]:
    """Return the comparison and the settings that the options describe."""
    given = flags.given({name: value for name, value in options.items() if name not in _LISTS})
    path: Path | None = options["manifest"]
    wanted = _from_flags(options, given) if path is None else flags.manifest(path, given)
    if path is not None and (lists := [name for name in _LISTS[:3] if options[name]]):
        flag = lists[0].replace("_", "-")
        raise ConfigError(f"--{flag} describes cells and cannot be combined with the manifest {path}; drop one")
    embedded = wanted.backbone.name == EMBEDDED
    usual = 0.0 if options["sweep"] else 2.0 if embedded else 10.0
    seconds = options["seconds"] if options["seconds"] is not None else usual
    extra: list[Configuration] = ["compile"] if options["compiled"] else []
    extra += ["cuda-graph"] if options["cuda_graph"] else []
    return wanted, Settings(
        repetitions=options["repetitions"] or (SWEEP_REPETITIONS if options["sweep"] else REPETITIONS),
        seconds=seconds,
        warmups=options["warmups"],
        answers=options["answers"],
        batch_sizes=tuple(_positive("--batch-size", numbers("--batch-size", options["batch_size"] or ["1"], int))),
        image_hw=image_size(options["image_size"]),
        text_tokens=options["text_tokens"],
        configurations=("eager", *extra),
        sweep=options["sweep"],
    )


def _positive(flag: str, values: Sequence[int]) -> Sequence[int]:
    if any(value < 1 for value in values):
        raise ConfigError(f"{flag}: {min(values)} is none; give 1 or more")
    return values


def _from_flags(options: Mapping[str, Any], given: flags.Flags) -> Manifest:
    from dpbench.measure.environment import folder_name

    return manifest_of(
        name="flops" if options["flops_only"] else folder_name(options["device"]),
        backbone=given.backbone,
        placement=given.placement(),
        protocol=given.protocol(),
        methods=names(options["method"] or []),
        params=registry.parse_params(given.params),
        keep=numbers("--keep", options["keep"] or [], int),
        prune_rate=numbers("--prune-rate", options["prune_rate"] or [], float),
        kind=given.budget_kind,
    )
