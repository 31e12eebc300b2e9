"""Between the command line and the library: flags become a manifest, results become a few printed lines. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize, TypeAdapter, ValidationError
from tabulate import tabulate

from dpbench import backbones, registry, tasks
from dpbench.data.root import data_files
from dpbench.errors import ConfigError, MissingError, UnsupportedError
from dpbench.manifest import Manifest
from dpbench.manifest_file import load_manifest, make_manifest
from dpbench.sharding import WHOLE, Shard

if TYPE_CHECKING:
    from dpbench.diffprune.recipe import Recipe
    from dpbench.diffprune.train import Ended
    from dpbench.runner import Outcome, Plan


_BACKBONE = ("weights", "revision", "quantize", "device_map")
_PROTOCOL = (
    "limit",
    "subset",
    "batch_size",
    "dtype",
    "attention",
    "prompt",
    "anyres",
    "newline",
    "min_pixels",
    "max_pixels",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What was given on the command line; None or empty where it was not."""

    method: str | None = None
    params: list[str] = field(default_factory=list)
    backbone: str | None = None
    weights: str | None = None
    revision: str | None = None
    quantize: str | None = None
    device_map: str | None = None
    keep: int | None = None
    prune_rate: float | None = None
    budget_kind: str | None = None
    tasks: list[str] | None = None
    limit: int | None = None
    subset: str | None = None
    asked_as: str | None = None
    batch_size: str | None = None
    dtype: str | None = None
    attention: str | None = None
    prompt: str | None = None
    anyres: str | None = None
    newline: str | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None

    def protocol(self) -> dict[str, Any]:
        """Return the protocol keys that were given."""
        given = self._given(_PROTOCOL) | ({"ocr": self.asked_as == "llava"} if self.asked_as else {})
        size = given.get("batch_size")
        return given | ({"batch_size": int(size)} if size and size.isascii() and size.isdecimal() else {})

    def placement(self) -> dict[str, Any]:
        """Return the backbone keys that were given besides its name."""
        return self._given(_BACKBONE)

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: str(v) if isinstance(v, str) else v for name, v in values.items() if v is not None}


def given(options: Mapping[str, Any]) -> Flags:
    """Pick the flags out of a command's options; `--param` may come several times."""
    names = {each.name for each in fields(Flags)} & set(options)
    return Flags(**{name: options[name] for name in names}, params=options["param"] or [])


def manifest(path: Path | None, flags: Flags) -> Manifest:
    """Return the manifest that a file, or flags alone, describe; flags override a file's weights, tasks and protocol.

    With `--backbone` the file is run on another backbone; see `_on`.

    Raises:
        ConfigError: neither was given, or flags that only describe a cell came with a file.
    """
    cell_flags: dict[str, object] = {"--method": flags.method, "--keep": flags.keep}
    cell_flags |= {"--prune-rate": flags.prune_rate, "--param": flags.params or None}
    cell_flags |= {"--budget-kind": flags.budget_kind}
    given = [name for name, value in cell_flags.items() if value is not None]
    if path is None:
        return _from_flags(flags)
    if given:
        raise ConfigError(f"{given[0]} describes one cell and cannot be combined with the manifest {path}; drop one")
    loaded = load_manifest(path)
    data = loaded.model_dump(exclude_none=True)
    if flags.backbone is not None and flags.backbone != loaded.backbone.name:
        data |= _on(flags.backbone, loaded)
    data["protocol"] |= flags.protocol()
    data["backbone"] |= flags.placement()
    return make_manifest(data | _tasks(flags), source=str(path))


def _on(backbone: str, loaded: Manifest) -> dict[str, Any]:
    """Return what changes where a manifest is run on another backbone than its own.

    Budgets that are counts become the same share of the other's visual tokens, where both have a fixed number of them;
    scorers belong to a backbone, so the one that ships for the other is taken; of weights, the default ones. A method
    that the other backbone cannot serve is named on stderr and left out.
    """
    old, new = backbones.find(loaded.backbone.name).num_visual, backbones.find(backbone).num_visual
    methods = [
        {"name": each.name, "params": {name: value for name, value in each.params.items() if name != "checkpoint"}}
        for each in loaded.methods
    ]
    methods = [each for each in methods if _served(each, backbone)]
    changed: dict[str, Any] = {"backbone": {"name": backbone}, "methods": methods}
    if loaded.budgets and loaded.budgets.keep and old and new:
        budgets = loaded.budgets.model_dump(exclude_none=True)
        changed["budgets"] = budgets | {"keep": [max(1, round(keep * new / old)) for keep in budgets["keep"]]}
    return changed


def _served(entry: Mapping[str, Any], backbone: str) -> bool:
    try:
        registry.load(entry["name"], entry["params"]).files(backbone)
    except UnsupportedError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True


def _from_flags(flags: Flags) -> Manifest:
    if flags.method is None or flags.backbone is None:
        missing = "--method" if flags.method is None else "--backbone"
        raise ConfigError(f"{missing} is missing; give a manifest, or --method, --backbone and --keep or --prune-rate")
    registry.find(flags.method)
    if flags.keep is not None and flags.prune_rate is not None:
        raise ConfigError("--keep and --prune-rate both set the budget; give one of them")
    budget: dict[str, Any] = {"keep": [flags.keep]} if flags.keep is not None else {"prune_rate": [flags.prune_rate]}
    if flags.method == "none" and (flags.keep is not None or flags.prune_rate is not None):
        raise ConfigError("--method none keeps every visual token; drop --keep and --prune-rate")
    if flags.keep is None and flags.prune_rate is None:
        if flags.method != "none":
            raise ConfigError(f"--method {flags.method} needs a budget; give --keep K or --prune-rate R")
        budget = {}
    if budget and flags.budget_kind is not None:
        budget["kind"] = str(flags.budget_kind)
    size = flags.keep if flags.keep is not None else flags.prune_rate
    name = "-".join(str(part) for part in (flags.backbone, flags.method, size) if part is not None)
    data: dict[str, Any] = {
        "name": name,
        "backbone": {"name": flags.backbone, **flags.placement()},
        "methods": [{"name": flags.method, "params": registry.parse_params(flags.params)}],
        "protocol": flags.protocol(),
    }
    return make_manifest(data | ({"budgets": budget} if budget else {}) | _tasks(flags), source="command line")


def _tasks(flags: Flags) -> dict[str, list[str]]:
    if not flags.tasks:
        return {}
    return {"tasks": [name.strip() for entry in flags.tasks for name in entry.split(",") if name.strip()]}


def data_root(wanted: Manifest, given: Path | None) -> Path | None:
    """Return where the data lies, or None for the hub's cache.

    As given; else, for toy-llava, the mirror inside the package; else what DPBENCH_DATA says.

    Raises:
        ConfigError: the folder given is not there.
    """
    if given is None and wanted.backbone.name == "toy-llava":
        return toy_data_root()
    return given_root(given)


def given_root(given: Path | None) -> Path | None:
    """Return the data root that was given, else what DPBENCH_DATA says, or None for the hub's cache.

    Raises:
        ConfigError: the folder is not there.
    """
    if given is None and "DPBENCH_DATA" in os.environ:
        given = Path(os.environ["DPBENCH_DATA"])
    if given is not None and not given.is_dir():
        raise ConfigError(f"--data-root: there is no folder {given}")
    return given


def toy_data_root() -> Path:
    """Return the mirror inside the package."""
    return Path(str(files("dpbench"))) / "toy" / "data"


def describe(planned: Plan) -> str:
    """List a plan's cells: what would run, what is done, where results go."""
    lines = [f"run    {cell.id}  {cell.label}" for cell in planned.pending]
    lines += [f"done   {each.cell_id}  {each.cell['method']} on {each.cell['task']}" for each in planned.done]
    return "\n".join([*lines, f"{len(planned.pending)} cells to run, {len(planned.done)} done, in {planned.folder}"])


def summary(outcome: Outcome, folder: Path, shard: Shard = WHOLE) -> str:
    """Say what a run added, which samples failed, what the feature cache saved, and what to do next."""
    lines = [
        f"{each.num_failed} of {each.num_samples} samples failed: {each.cell['method']} on {each.cell['task']} "
        f"(reasons in {folder}/samples/{each.cell_id}.jsonl)"
        for each in (*outcome.added, *outcome.found)
        if each.num_failed
    ]
    lines += [f"not finished: {label}, {done} of {total} answered" for label, done, total in outcome.unfinished]
    counts = outcome.feature_cache
    if any(counts.values()):
        lines.append(f"feature cache: {counts['encoded']} images encoded, {counts['hits']} times found again")
    if outcome.broken:
        rows = [(each.cell.label, each.reason) for each in outcome.broken]
        lines.append(tabulate(rows, ("cell that failed", "reason"), "github", maxcolwidths=[None, 80]))
        lines.append("the same command tries them again")
    if shard != WHOLE and not outcome.added:
        return "\n".join([*lines, f"shard {shard.label} is done; once all are: dpbench merge {folder}"])
    lines += [f"for its server, with no score here: {path}" for path in sorted(folder.glob("submissions/*.json"))]
    return "\n".join([*lines, f"{len(outcome.added)} records added; see: dpbench report --run {folder}"])


def num_bytes(text: str) -> int:
    """Return how many bytes a size is, as "4GiB", "500MB" or "0".

    Raises:
        ConfigError: it is no size.
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigError(f"--feature-cache: {text!r} is no size; give one as 4GiB, 500MB or 0") from None


def two_columns(rows: Iterable[tuple[str, str]]) -> str:
    """Align names and descriptions."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def backbone_table() -> str:
    """Return the backbones as a table."""
    heads = ("name", "what", "parameters", "visual tokens", "default weights", "signals of the tower")
    rows = [
        (name, each.summary, each.parameters, each.visual, each.weights, each.signals)
        for name, each in backbones.FAMILIES.items()
    ]
    return tabulate(rows, heads, "plain", disable_numparse=True)


def task_table(data_root: Path | None) -> str:
    """Return the benchmarks and their variants as a table, with where their data is looked for and whether it is there.

    Args:
        data_root: a folder with one sub-folder per repository, or None for the hub's cache.
    """
    heads = ("task", "data", "there", "split", "questions", "images", "metric", "scale", "protocol")
    rows = [
        (k, t.repository, _there(k, data_root), t.split, t.num_asked, t.num_images, t.measure, t.scale, t.protocol)
        for k, t in tasks.ALL.items()
    ]
    table = tabulate(rows, heads, "simple", missingval="", maxcolwidths=[None] * (len(heads) - 1) + [46])
    place = f"{data_root}/DATA" if data_root else f"the hub's cache, as {tasks.ORGANISATIONS[0]}/DATA"
    return f"{table}\n\nData is looked for in {place}; fetch what is not there with: dpbench data pull TASK"


def _there(name: str, data_root: Path | None) -> str:
    """Say whether a benchmark's data is there, images that lie apart included."""
    images = tasks.find(name).images
    try:
        for config in (None, images) if images else (None,):
            data_files(name, data_root, config)
    except MissingError:
        return "no"
    return "yes"


def conformance(name: str, params: list[str], names: tuple[str, ...], goldens: Path | None) -> tuple[list[str], bool]:
    """Return the lines that `dpbench check` prints, and whether all is well."""
    from dpbench import check, vectors

    given = registry.parse_params(params)
    method, files = registry.load(name, given), vectors.find(name, goldens) if goldens else []
    findings = list(check.check(name, given, names or None))
    checked = [vectors.check(method, path) for path in files]
    lines = [check.table(findings)]
    if checked:
        rows = [(each.path.name, each.kind, "ok" if each.passed else f"FAILED: {each.detail}") for each in checked]
        passed = sum(each.passed for each in checked)
        lines += ["", tabulate(rows, ["vector", "kind", "outcome"], "github"), f"{passed} of {len(checked)} vectors"]
    return lines, all(each.passed for each in findings) and all(each.passed for each in checked)


def first_comment(path: Path) -> str:
    """Return what a manifest's first line says of it."""
    return path.read_text(encoding="utf-8").split("\n")[0].removeprefix("#").strip()


def recipe(options: Mapping[str, Any]) -> Recipe:
    """Return the training that a command's options describe; `--param` sets what has no flag of its own.

    Raises:
        ConfigError: an unknown setting, or a value it cannot take.
    """
    from dpbench.diffprune.recipe import Recipe
    from dpbench.diffprune.recipe import recipe as checked

    settings = {name: options[name] for name in Recipe.model_fields if options.get(name) is not None}
    settings = {name: str(value) if isinstance(value, str) else value for name, value in settings.items()}
    backbones.find(settings.pop("backbone"))
    return checked(options["backbone"], settings | registry.parse_params(options["param"] or []))


def scorer_folder(wanted: Recipe, out: Path | None) -> Path:
    """Return where a training writes: `out`, or a folder under scorers/ named after what is trained."""
    variant = "" if wanted.variant == "diffprune" else f"-{wanted.variant}"
    return out or Path("scorers") / f"{wanted.backbone}{variant}"


def trained(wanted: Recipe, ended: Ended) -> str:
    """Return what a finished training says of itself."""
    keep = wanted.keep.split(",")[0]
    budget = f"--keep {keep}" if keep.isdigit() else f"--prune-rate {1 - float(keep.split('-')[0]):g}"
    skipped = f"{ended.num_broken} broken examples were left out, see broken.jsonl\n" if ended.num_broken else ""
    return (
        f"{skipped}{ended.folder}: {ended.step} steps, loss per caption token {ended.best:.3f} under hard top-k, "
        f"{ended.full:.3f} unpruned; try it with:\n"
        f"dpbench run --method diffprune --backbone {wanted.backbone} {budget} --param checkpoint={ended.folder}"
    )
