"""Measure what a probe has no record of yet, one record at a time: a stopped probe goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from dpbench.machine.environment import environment, versions
from dpbench.machine.progress_bar import Bar
from dpbench.manifest.source_files import source_files, source_hash
from dpbench.probe.site import Site
from dpbench.storage import record
from dpbench.storage.record import Probe

RECORDS = "probes.jsonl"
Setting = dict[str, Any]
Measure = Callable[[Setting], Mapping[str, tuple[float, ...]]]


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
    measure: Measure


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
    path, sources = folder / RECORDS, source_hash(source_files("dpbench.probe.runner"))
    machine = {"versions": versions(), **environment(device)}
    done = {_key(line): line for line in record.read(path, Probe)}
    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        for setting in bar.track(measured.settings, description=measured.probe):
            line = _identify(measured, setting, sources, machine)
            if _key(line) not in done:
                line = _measure(measured, line)
                record.append(path, line)
                done[_key(line)] = line
    keys = [_key(_identify(measured, setting, sources, machine)) for setting in measured.settings]
    return [done[key] for key in keys]


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
