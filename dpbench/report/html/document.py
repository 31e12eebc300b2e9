"""Everything about a run in one HTML file that needs no network: summary, tables, Pareto chart, samples, commands.

What comes from records is text: the template escapes it, the data block cannot end its own script element, the page's
script writes text nodes only, and a content-security policy forbids every script and style but those hashed here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dpbench import __version__
from dpbench.errors import ConfigError
from dpbench.report import intervals, runs, summary
from dpbench.report.figures.costs import AXES
from dpbench.report.figures.data import (
    CostTable,
    Point,
    RowIntervals,
    against_cost,
    cost_tables,
    retention_points,
)
from dpbench.report.html import samples
from dpbench.report.html.data import chart, environments, flat_table, records
from dpbench.report.html.samples import Browser
from dpbench.report.runs import Comparison, Run
from dpbench.report.tables import ablation, efficiency, scores, significance

MB = 1_000_000
_GUARD = re.compile(r'getElementById\("([0-9a-f]{32,})"\)')
"""Element ids by which plotly.js checks for the style sheet of its maps, which this page does not need."""
_SLACK = 0.97
"""Share of the budget to plan with: escapes in the data block need a little more."""


@dataclass(frozen=True, slots=True)
class Part:
    """One comparison on the page."""

    comparison: Comparison
    heading: str
    sentences: tuple[str, ...]
    tables: tuple[Mapping[str, Any], ...]
    claims: tuple[Mapping[str, Any], ...]
    chart: Mapping[str, Any]
    browser: Browser


def render(folders: Sequence[Path], *, max_mb: float = 20.0, data_root: Path | None = None) -> str:
    """Return the page of some runs as one HTML text.

    Args:
        folders: run folders.
        max_mb: upper limit of its size in 10^6 bytes; it has as many samples as fit.
        data_root: folder of the benchmarks' data; by default where `dpbench run` looks for it.

    Raises:
        ConfigError: a folder has no results, or the page is too large even without samples.
        RecordError: a record or journal cannot be used.
    """
    loaded = [runs.load(folder) for folder in folders]
    tables = cost_tables(profile for run in loaded for profile in run.profiles)
    parts = [_part(comparison, tables) for comparison in runs.comparisons(loaded)]
    empty = _html(loaded, parts, tables)
    left = max_mb * MB * _SLACK - len(empty.encode())
    if left < 0:
        needed = len(empty.encode()) / MB / _SLACK
        raise ConfigError(
            f"--max-mb {max_mb:g}: the page takes {needed:.1f} MB without any sample; give {needed + 1:.0f}"
        )
    complete = []
    for number, part in enumerate(parts):
        root = data_root or samples.default_root(part.comparison.cell["backbone"])
        browser = samples.browser(part.comparison, root, left / (len(parts) - number))
        left -= sum(map(len, browser.images)) + len(json.dumps(browser.samples, ensure_ascii=False).encode())
        complete.append(replace(part, browser=browser))
    return _html(loaded, complete, tables)


def _part(comparison: Comparison, tables: Sequence[CostTable]) -> Part:
    bootstrap = intervals.load_or_compute(comparison)
    section = scores.section(comparison, bootstrap.like_random())
    heading, ablations = (
        scores.heading(comparison),
        [ablation.section(comparison)] if ablation.is_ablation(comparison) else [],
    )
    return Part(
        comparison=comparison,
        heading=heading,
        sentences=summary.sentences(comparison, bootstrap),
        tables=(*map(flat_table, ablations), flat_table(section, comparison, heading="Scores")),
        claims=tuple(
            flat_table(table, heading=_strip_start(table.heading, heading))
            for table in significance.sections(comparison, bootstrap)
        ),
        chart=_chart(comparison, tables, bootstrap.of_retention()),
        browser=Browser((), (), (), ""),
    )


def _strip_start(heading: str, start: str) -> str:
    """Return a heading without the start that repeats the one above it."""
    rest = heading.removeprefix(start).lstrip(":;,. ")
    return rest[:1].upper() + rest[1:] if rest else heading


def _chart(comparison: Comparison, tables: Sequence[CostTable], row_intervals: RowIntervals) -> dict[str, Any]:
    pruned = [point for point in retention_points(comparison, row_intervals) if point.method != "none"]
    axes: dict[str, list[Point]] = {"visual tokens read (% of all)": pruned}
    for number, table in enumerate(tables):
        for quantity, label in AXES.items():
            name = label if number == 0 else f"{label}; {table.heading}"
            axes[name] = against_cost(comparison, table, quantity, row_intervals)
    return chart({name: points for name, points in axes.items() if points})


def _html(loaded: Sequence[Run], parts: Sequence[Part], tables: Sequence[CostTable]) -> str:
    """Fill the template."""
    assets = files("dpbench.report.html")
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    plotly = _plotly() if any(part.chart["axes"] for part in parts) else ""
    environment = Environment(
        loader=PackageLoader("dpbench.report.html", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    everything = [record for run in loaded for record in run.records]
    commands = records(loaded)
    profiles = [profile for run in loaded for profile in run.profiles]
    return environment.get_template("page.html.j2").render(
        policy=_policy([plotly, script] if plotly else [script], [style, ""]),
        style=Markup(style),
        script=Markup(script),
        plotly=Markup(plotly),
        styled=_GUARD.findall(plotly),
        title=", ".join(run.folder.name for run in loaded),
        version=__version__,
        parts=parts,
        costs=[flat_table(section) for section in efficiency.sections(profiles)],
        cost_sentences=summary.profile_sentences(tables),
        records=commands,
        environments=environments(everything, profiles),
        data=Markup(data_block(_data(parts, commands))),
    )


def _data(parts: Sequence[Part], commands: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    browsers = [
        {
            "rows": part.browser.rows,
            "images": part.browser.images,
            "samples": part.browser.samples,
            "fit": part.browser.fit,
        }
        for part in parts
    ]
    return {
        "cells": {record["id"]: record for record in commands},
        "charts": [part.chart for part in parts],
        "browsers": browsers,
    }


def data_block(data: Any) -> str:
    """Return JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    """Return plotly.js as one script's text."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """Return a content-security policy that allows these inline scripts and styles and nothing from elsewhere.

    plotly fills an empty style element by script and sets style attributes, hence the empty text and the last rule.
    """
    allowed = {"script-src": scripts, "style-src-elem": styles}
    rules = [f"{name} {' '.join(map(_source, texts))}" for name, texts in allowed.items()]
    fixed = ["style-src-attr 'unsafe-inline'", "img-src data:", "base-uri 'none'", "form-action 'none'"]
    return "; ".join(["default-src 'none'", *rules, *fixed])


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
