"""From a manifest to the text of its estimate, as `dpbench plan` and `dpbench run --dry-run` print it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpbench.cli import messages
from dpbench.errors import MissingError
from dpbench.evaluation.plan import Plan, plan
from dpbench.manifest.schema import Manifest

NOT_OF_A_RUN = ("--measure", "--dry-run")
"""Flags that the command which runs the manifest does not have, or that stop it from running."""


def format_estimate(
    manifest: Manifest,
    out: Path,
    data_root: Path | None,
    arguments: Sequence[str],
    *,
    measure: str | None = None,
    list_cells: bool = False,
) -> str:
    """Return what a run would take, with its cells if they are known and wanted.

    Args:
        manifest: what would run.
        out: results go to `out/<manifest name>`.
        data_root: folder with the benchmarks' data, or None for the hub's cache.
        arguments: of this command; those of the run are the same, but for flags of the estimate.
        measure: device to measure rates on; None for the committed profiles.
        list_cells: whether to list every cell before.
    """
    if list_cells and (finished := _find_finished(manifest, out, data_root)):
        return f"{messages.format_cells(finished)}\n\n{messages.format_finished(finished)}"
    from dpbench.estimate import overview, summary

    estimate = overview.build_overview(manifest, out, data_root, measure=measure)
    text = summary.format_overview(estimate, [word for word in arguments if word not in NOT_OF_A_RUN])
    return f"{messages.format_cells(estimate.plan)}\n\n{text}" if list_cells and estimate.plan else text


def _find_finished(manifest: Manifest, out: Path, data_root: Path | None) -> Plan | None:
    """Return the plan of a run with nothing left to do, whose costs need not be estimated: that takes a model."""
    try:
        planned = plan(manifest, out, data_root)
    except MissingError:
        return None
    return None if planned.pending else planned
