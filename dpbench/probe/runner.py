"""Measure what a probe has no record of yet, one record at a time: a stopped probe goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from dpbench.diffprune import checkpoint as checkpoints
from dpbench.diffprune.spread import deviations
from dpbench.machine.environment import environment, versions
from dpbench.machine.progress_bar import Bar
from dpbench.manifest.source_files import source_files, source_hash
from dpbench.probe.settings import ProbeSettings, check_budgets, find_way
from dpbench.probe.site import Site
from dpbench.storage import record
from dpbench.storage.record import Probe

RECORDS = "probes.jsonl"
Setting = dict[str, Any]
"""What identifies one measurement inside a probe."""
Values = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A probe.

    Attributes:
        name: of the command and in the records.
        settings_of: lists the measurements that settings ask for.
        measure: returns the raw values of one, given the spread of the untrained scorer's logits, the unit of tau.
    """

    name: str
    settings_of: Callable[[Any], Iterable[Setting]]
    measure: Callable[[Site, Setting, Any, float], Values]


def probe(
    kind: Kind, site: Site, settings: ProbeSettings, folder: Path, *, device: str, console: Console
) -> list[Probe]:
    """Measure on a fresh scorer, or on every checkpoint of the settings, and return the records.

    Args:
        kind: which probe.
        site: where the scorer sits; it holds a fresh one.
        settings: what is measured.
        folder: gets the records.
        device: where it runs, for the environment.
        console: shows the progress.

    Raises:
        ConfigError: a variant, a budget, the data or a checkpoint cannot be used.
        RecordError: the file of records cannot be read.
        StorageError: the disk is full; all finished records stay.
    """
    for way in settings.ways:
        find_way(way)
    check_budgets("--keep", settings.keep, site.num_tokens, site.model)
    site.load_batch(settings.batches - 1, settings.batch_size)  # refuses too few images before anything is measured
    spread, records = measure_spread(site, settings), []
    shared = {
        "spread": spread,
        "data": site.data,
        "parameters": sum(parameter.numel() for parameter in site.scorer.parameters()),
        **settings.model_dump(exclude=set(settings.grid)),
    }
    for checkpoint in _scorers(settings):
        step = site.load_scorer(Path(checkpoint)) if checkpoint else 0
        measured = Measured(
            probe=kind.name,
            site=site,
            checkpoint=checkpoint,
            step=step,
            shared=shared,
            settings=list(kind.settings_of(settings)),
            measure=lambda setting: kind.measure(site, setting, settings, spread),
        )
        records += run(measured, folder, device=device, console=console)
    return records


def _scorers(settings: ProbeSettings) -> Sequence[str | None]:
    """Return the folders of the scorers to probe, those along a training one by one; None is a fresh scorer."""
    folders = [step for name in settings.checkpoints for step in checkpoints.list_steps(Path(name).expanduser())]
    return [str(folder) for folder in folders] or [None]


@torch.no_grad()
def measure_spread(site: Site, settings: ProbeSettings) -> float:
    """Return the standard deviation of the logits over the tokens of a view, mean over the held-out batches' views."""
    found = []
    for number in range(settings.held_out):
        batch = site.load_batch(number, settings.batch_size, held_out=True)
        found.append(deviations(site.logits(batch), site.valid(batch)))
    return float(torch.cat(found).mean())


@dataclass(frozen=True, slots=True)
class Measured:
    """What a probe measures on one scorer.

    Attributes:
        probe: its name.
        site: with the scorer in it.
        checkpoint: folder of the scorer; None for a fresh one.
        step: its training step.
        shared: what all measurements have in common.
        settings: one per measurement.
        measure: returns raw values.
    """

    probe: str
    site: Site
    checkpoint: str | None
    step: int
    shared: Mapping[str, Any]
    settings: Sequence[Setting]
    measure: Callable[[Setting], Values]


def run(measured: Measured, folder: Path, *, device: str, console: Console) -> list[Probe]:
    """Measure every setting without a record and return the records of all, in the order of the settings.

    Args:
        measured: of one scorer.
        folder: gets the records.
        device: where it runs, for the environment.
        console: shows the progress.

    Raises:
        RecordError: the file of records cannot be read.
        StorageError: the disk is full; all finished records stay.
    """
    path, sources = folder / RECORDS, source_hash(source_files(f"dpbench.probe.{measured.probe}"))
    machine = {"versions": versions(), **environment(device)}
    done = {_key(line): line for line in record.read(path, Probe)}
    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        lines = []
        for setting in bar.track(measured.settings, description=measured.probe):
            asked = _identify(measured, setting, sources, machine)
            line = done.get(_key(asked))
            if line is None:
                line = _measure(measured, asked)
                record.append(path, line)
            lines.append(line)
    return lines


def _identify(measured: Measured, setting: Setting, sources: str, machine: Mapping[str, Any]) -> Probe:
    return Probe(
        probe=measured.probe,
        model=measured.site.model,
        site=measured.site.name,
        checkpoint=measured.checkpoint,
        step=measured.step,
        setting=setting,
        shared=measured.shared,
        values={},
        sources=sources,
        seconds=0.0,
        finished="",
        environment=machine,
    )


def _measure(measured: Measured, line: Probe) -> Probe:
    start = time.perf_counter()
    values = measured.measure(dict(line.setting))
    seconds = round(time.perf_counter() - start, 3)
    return replace(line, values=values, seconds=seconds, finished=datetime.now(UTC).isoformat(timespec="seconds"))


def _key(line: Probe) -> str:
    parts = line.probe, line.model, line.site, line.checkpoint, line.step, line.setting, line.shared, line.sources
    return json.dumps(parts, sort_keys=True)
