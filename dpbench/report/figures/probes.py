"""Figures of `dpbench probe`, and which records share one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dpbench.report.figures import probe_coherence, probe_landscape, probe_noise
from dpbench.report.tables.probes import newest
from dpbench.storage.record import Probe

MAKERS: dict[str, Callable[[Sequence[Probe]], Iterator[tuple[str, Figure]]]] = {
    "coherence": probe_coherence.draw,
    "landscape": probe_landscape.draw,
    "noise": probe_noise.draw,
}


def draw(lines: Iterable[Probe]) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of every probe, model, site and scorer, each with its name.

    The scorers along one training share the figures of coherence.
    """
    groups: dict[str, list[Probe]] = defaultdict(list)
    for line in newest(lines):
        scorer = _training(line) if line.probe == "coherence" else (line.checkpoint, line.step)
        groups[repr((line.probe, line.model, line.site, scorer, line.shared))].append(line)
    for group in groups.values():
        for name, figure in MAKERS[group[0].probe](group):
            yield f"{name}-{group[0].model}", figure


def _training(line: Probe) -> str | None:
    """Return the folder of a training, above those of its steps; None for a fresh scorer."""
    if line.checkpoint is None:
        return None
    folder = Path(line.checkpoint)
    return str(folder.parent if folder.name.isdecimal() else folder)
