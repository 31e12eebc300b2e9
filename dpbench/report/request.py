"""`dpbench report`: from run folders to text, for every table and format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dpbench.errors import ConfigError
from dpbench.report import intervals, runs, zip_file
from dpbench.report.runs import Comparison, Run, runs_under
from dpbench.report.tables import (
    ablation,
    ablation_pairs,
    costs_beside_published,
    csv_files,
    efficiency,
    hard_subset,
    ours_beside_published,
    paper_tables,
    probes,
    published,
    scores,
    significance,
    two_runs,
)
from dpbench.report.tables.render import render, render_all
from dpbench.report.tables.table import Section
from dpbench.report.terminal import screen
from dpbench.storage import files

__all__ = ["Request", "render", "report", "runs_under", "sections", "write"]

RESULTS = Path("results")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a report contains and where it is written.

    Attributes:
        folders: runs; if empty, all under results/.
        table: 1 to 5 as the paper numbers them, None for all: 1 LLaVA-1.5 (and toy-llava), 2 LLaVA-NeXT, 3 Qwen2.5-VL,
            4 efficiency, 5 ablation.
        full: every table on a terminal too, which gets the short form otherwise.
        form: markdown, latex, csv, json or html; None for tables that fit on a terminal, and markdown elsewhere.
        compare: set the paper's numbers beside ours.
        paper: print the paper's tables alone.
        diff: print what changed from the first run to the second.
        hard: add the hard subset.
        bundle: zip file to write.
        out: file to write, or a folder for csv, one file a table; None for standard output.
        figures: folder for the figures.
        max_mb: most that a page may take, 10^6 bytes.
        data_root: where the images on a page come from; None as `dpbench run` looks for them.
    """

    folders: tuple[Path, ...] = ()
    table: int | None = None
    full: bool = False
    form: str | None = None
    compare: bool = False
    paper: bool = False
    diff: bool = False
    hard: bool = False
    bundle: Path | None = None
    out: Path | None = None
    figures: Path | None = None
    max_mb: float = 20
    data_root: Path | None = None


def write(request: Request) -> tuple[str, list[str]]:
    """Write a report to where it was requested.

    Returns:
        The text for standard output, empty if it went to a file or a terminal, and a note on each thing written.

    Raises:
        ConfigError: see `report`; or a file cannot be written.
        RecordError: see `report`.
    """
    text, notes = ("", list[str]()) if is_for_terminal(request) else _write_text(request)
    if is_for_terminal(request):
        _print(request)
    if request.figures is not None:
        from dpbench.report.figures.files import write as write_figures

        paths = write_figures(request.folders or runs_under(RESULTS), request.figures)
        notes.append(f"{request.figures}: {len(paths)} files")
    return text, notes


def is_for_terminal(request: Request) -> bool:
    """Return True if a report is printed as tables that fit a terminal: neither format nor file was asked for."""
    return request.form is None and request.out is None and request.bundle is None and screen.is_terminal()


def _print(request: Request) -> None:
    _check(request)
    console, folders = screen.build_console(), request.folders or (() if request.paper else tuple(runs_under(RESULTS)))
    if request.paper:
        screen.print_full(_paper(request), console)
        console.print(_verdict(request).strip())
    elif request.full or request.table or request.compare or request.diff or request.hard:
        screen.print_full(sections(request, folders), console)
    else:
        screen.print_short(folders, console)


def _write_text(request: Request) -> tuple[str, list[str]]:
    """Write the text of a report to its file, or return it; and the tables of csv to a folder."""
    if request.out is None:
        return report(request), []
    if request.form == "csv" and request.out.suffix != ".csv":
        _check(request)
        tables = _paper(request) if request.paper else sections(request, request.folders or tuple(runs_under(RESULTS)))
        return "", [f"{request.out}: {csv_files.write(tables, request.out)} files"]
    content = f"{report(request)}\n".encode()
    files.write_output("--out", request.out, content)
    return "", [f"{request.out}: {len(content) / 1e6:.1f} MB" if len(content) >= 1e5 else f"{request.out}: written"]


def report(request: Request) -> str:
    """Return a report as text.

    Raises:
        ConfigError: options that do not go together, a folder without records, nothing to print.
        RecordError: a record, journal or packed file cannot be read, or records cannot share a table.
    """
    _check(request)
    form = request.form or "markdown"
    if request.paper:
        return render_all(_paper(request), form) + _verdict(request)
    folders = request.folders or tuple(runs_under(RESULTS))
    if request.bundle:
        return f"written: {zip_file.write(request.bundle, folders, lambda copies: _parts(request, copies))}"
    if form == "html":
        return _page(request, folders)
    return render_all(sections(request, folders), form)


def _check(request: Request) -> None:
    if request.bundle and request.out:
        raise ConfigError("--bundle names its own file; remove --out")
    if request.diff and len(request.folders) != 2:
        raise ConfigError(f"--diff compares two runs, got {len(request.folders)}; give RUN_A RUN_B")
    modes = [name for name in ("paper", "diff", "bundle") if getattr(request, name)]
    if len(modes) > 1:
        raise ConfigError(f"--{modes[0]} and --{modes[1]} are two reports; give one of them")
    if request.paper and request.folders:
        raise ConfigError("--paper prints the paper's tables alone; for yours beside them give --compare paper")
    if request.form == "html" and modes and modes != ["bundle"]:
        raise ConfigError(f"--{modes[0]} has no page; give --format markdown, latex, csv or json")
    _check_effects(request)


def _check_effects(request: Request) -> None:
    """Refuse a choice of tables that would be ignored.

    Raises:
        ConfigError: names both options.
    """
    choices = {"table": request.table, "full": request.full, "compare": request.compare, "subset": request.hard}
    complete_reports = {
        "--paper": (request.paper, ("compare", "subset")),
        "--diff": (request.diff, ("table", "compare", "subset")),
        "--format html": (request.form == "html" and not request.bundle, ("table", "full", "compare", "subset")),
    }
    for option, (is_requested, ignored) in complete_reports.items():
        for name in ignored:
            if is_requested and choices[name]:
                raise ConfigError(f"--{name} has no effect on {option}, which shows all there is; remove it")


def sections(request: Request, folders: Sequence[Path]) -> list[Section]:
    """Return the tables of these runs.

    Raises:
        ConfigError: the runs have nothing for the requested table.
        RecordError: see `report`.
    """
    if request.diff:
        return two_runs.sections(folders[0], folders[1])
    loaded = [runs.load(folder) for folder in folders]
    tables = [table for comparison in runs.comparisons(loaded) for table in _comparison(comparison, request)]
    tables += _efficiency(loaded, request)
    if request.table is None:
        tables += probes.sections(line for run in loaded for line in run.probes)
    if not tables:
        where = ", ".join(map(str, folders))
        raise ConfigError(
            f"--table: {where} have nothing for Table {request.table}; remove --table to see what they have"
        )
    return tables


def _is_requested(request: Request, table: int) -> bool:
    return request.table in (None, table)


def _comparison(comparison: Comparison, request: Request) -> Iterable[Section]:
    is_ablation = ablation.is_ablation(comparison)
    if is_ablation and _is_requested(request, 5):
        yield ablation.section(comparison)
        yield from ablation_pairs.sections(comparison)
        if request.compare:
            yield ours_beside_published.variants(comparison)
    number = ours_beside_published.table_of(comparison.cell["backbone"])
    if _is_requested(request, number) and not (is_ablation and request.table):
        yield from _scores(comparison, request, with_paper=request.compare and not is_ablation)


def _scores(comparison: Comparison, request: Request, *, with_paper: bool) -> Iterable[Section]:
    bootstrap = intervals.load_or_compute(comparison)
    table = scores.section(comparison, bootstrap.like_random())
    yield replace(table, notes=(*table.notes, *bootstrap.notes))
    if with_paper:
        yield ours_beside_published.scores(comparison)
    if request.table is None:
        yield from significance.sections(comparison, bootstrap)
    if request.hard:
        yield hard_subset.section(comparison)


def _efficiency(loaded: Sequence[Run], request: Request) -> Iterable[Section]:
    profiles = [profile for run in loaded for profile in run.profiles]
    if not _is_requested(request, 4) or not profiles:
        return
    for group in efficiency.groups(profiles):
        section = efficiency.section(group, profiles)
        yield section
        if request.compare:
            yield costs_beside_published.costs(group, section.heading)


def _paper(request: Request) -> list[Section]:
    return paper_tables.sections((request.table,) if request.table else published.TABLES)


def _verdict(request: Request) -> str:
    """Return the result of recomputing the averages; CSV and JSON have it as a column."""
    return f"\n\n{published.verdict()}" if request.form in (None, "markdown", "latex") and not request.table else ""


def _page(request: Request, folders: Sequence[Path]) -> str:
    from dpbench.report.html import document

    return document.render(folders, max_mb=request.max_mb, data_root=request.data_root)


def _parts(request: Request, copies: Sequence[Path]) -> dict[str, str]:
    """Return a bundle's tables and its page."""
    tables = sections(request, copies)
    endings = {"markdown": "md", "latex": "tex", "csv": "csv", "json": "json"}
    texts = {f"tables.{ending}": render_all(tables, form) + "\n" for form, ending in endings.items()}
    return {**texts, "report.html": _page(request, copies)}
