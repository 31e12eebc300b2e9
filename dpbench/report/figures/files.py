"""The figures of finished runs as files: PDF for print, SVG for the web, PNG for slides."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from dpbench.errors import ConfigError
from dpbench.report import intervals, runs
from dpbench.report.figures import benchmarks, costs, data, probes, scores
from dpbench.report.runs import Comparison
from dpbench.storage.files import write_output

FORMATS = ("pdf", "svg", "png")
PRINT: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "dpbench",
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
}
"""Readable at a paper's column width; letters in a PDF stay letters."""


def write(folders: Sequence[Path], out: Path) -> list[Path]:
    """Draw every figure for which these runs have the numbers.

    Args:
        folders: run folders.
        out: folder for the files; it is created if missing.

    Raises:
        ConfigError: there is nothing to draw, or `out` cannot be written to.
        RecordError: a record cannot be used.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--figures: {out} is a file; give a folder")
    with style():
        figures = draw(folders)
        if not figures:
            raise ConfigError(
                "--figures: these runs have nothing to draw; a figure takes a run with method none, or a probe"
            )
        return [path for name, figure in figures.items() for path in save(figure, out / name)]


def draw(folders: Sequence[Path]) -> dict[str, Figure]:
    """Return every figure for which these runs have the numbers, by name, in matplotlib's present style.

    Raises:
        RecordError: a record cannot be used.
    """
    loaded = [runs.load(folder) for folder in folders]
    tables = data.cost_tables(profile for run in loaded for profile in run.profiles)
    probed = probes.draw(line for run in loaded for line in run.probes)
    return dict(_unique(chain(_figures(runs.comparisons(loaded), tables), probed)))


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's style inside the block."""
    with rc_context(PRINT):
        yield


def save(figure: Figure, stem: Path, flag: str = "--figures") -> list[Path]:
    """Write one figure in every format; the same numbers give the same bytes.

    Args:
        figure: drawn.
        stem: path without the format's ending.
        flag: named the folder.

    Raises:
        ConfigError: a file cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{form}") for form in FORMATS]
    for path in paths:
        dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(path.suffix[1:])
        stream = io.BytesIO()
        figure.savefig(stream, format=path.suffix[1:], metadata=dated)
        write_output(flag, path, stream.getvalue())
    return paths


def _figures(compared: Sequence[Comparison], tables: Sequence[data.CostTable]) -> Iterator[tuple[str, Figure]]:
    for comparison in compared:
        backbone = comparison.cell["backbone"]
        if variants := data.variant_points(comparison):
            yield f"ablation-{backbone}", scores.ablation(variants)
            continue
        row_intervals = intervals.load_or_compute(comparison).of_retention()
        if points := data.retention_points(comparison, row_intervals):
            yield f"retention-{backbone}", scores.retention(points)
        yield f"benchmarks-{backbone}", benchmarks.draw(comparison)
        for table in tables:
            for quantity in ("ttft_ms", "gflop"):
                if points := data.against_cost(comparison, table, quantity, row_intervals):
                    yield f"pareto-{quantity.split('_')[0]}-{backbone}", costs.pareto(points, quantity, table)
    for table in tables:
        yield from costs.costs(table)
    records = [row for comparison in compared for row in comparison.records]
    if curves := data.scale_points(records, "diffprune"):
        yield "scale-diffprune", scores.scale(curves, "diffprune")


def _unique(figures: Iterable[tuple[str, Figure]]) -> Iterator[tuple[str, Figure]]:
    """Number figures that would share a name: the same backbone under several protocols or machines."""
    counts: dict[str, int] = {}
    for name, figure in figures:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        counts[name] = counts.get(name, 0) + 1
        yield (name if counts[name] == 1 else f"{name}-{counts[name]}"), figure
