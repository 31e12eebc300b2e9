"""Tables of `dpbench probe`, and which records share one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from dpbench.report.tables import probe_coherence, probe_landscape, probe_noise
from dpbench.report.tables.table import Section
from dpbench.storage.record import Probe

MAKERS: dict[str, Callable[[Sequence[Probe]], Section]] = {
    "coherence": probe_coherence.section,
    "landscape": probe_landscape.section,
    "noise": probe_noise.section,
}


def sections(lines: Iterable[Probe]) -> list[Section]:
    """Return one table per probe, model, site and scorer, in the order of the records."""
    groups: dict[str, list[Probe]] = defaultdict(list)
    for line in newest(lines):
        groups[repr((line.probe, line.model, line.site, line.checkpoint, line.step, line.shared))].append(line)
    return [MAKERS[group[0].probe](group) for group in groups.values()]


def newest(lines: Iterable[Probe]) -> list[Probe]:
    """Return the newest line of each measurement: another version of the code measures the same thing again."""
    latest: dict[str, Probe] = {}
    for line in sorted(lines, key=lambda line: line.finished):
        key = repr((line.probe, line.model, line.site, line.checkpoint, line.step, line.setting, line.shared))
        latest.pop(key, None)
        latest[key] = line
    return list(latest.values())
