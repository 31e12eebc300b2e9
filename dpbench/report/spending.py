"""Which rows read more visual tokens than their budget: decided by what was read, whatever a method declares."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean

from dpbench.budget import tolerance
from dpbench.report.runs import Comparison, RowKey
from dpbench.storage.record import Profile, Record


def overspends(comparison: Comparison, key: RowKey) -> bool:
    """Return True if a row's mean tokens read lie above its budget by more than `budget.tolerance`."""
    read, allowed = tokens_read(comparison, key), allowance(comparison, key)
    return read is not None and allowed is not None and read > allowed + tolerance(allowed) + 1e-9


def explain(comparison: Comparison, key: RowKey) -> str:
    """Return by how much a row that overspends does so."""
    read, allowed = tokens_read(comparison, key), allowance(comparison, key)
    return f"reads {read:.1f} visual tokens of a budget of {allowed:g}; takes no part in the ranking"


def profile_overspends(profile: Profile, num_unpruned: float | None) -> bool:
    """Return True if what the last decoder layer read, and so every layer, lies above the budget of a timed method.

    Args:
        profile: of a method; it does not say how its budget counts, so that a mean above the budget may be as asked.
        num_unpruned: visual tokens that the unpruned model reads of the same prompt, None if unknown.
    """
    request, layers = profile.budget_request, profile.visual_tokens_per_layer
    budget = None if request.keep is None else float(request.keep * profile.num_images)
    if request.prune_rate is not None and num_unpruned is not None:
        budget = (1 - request.prune_rate) * num_unpruned
    return bool(layers) and budget is not None and layers[-1] > budget + tolerance(budget) + 1e-9


def allowance(comparison: Comparison, key: RowKey) -> float | None:
    """Return how many tokens a row's budget is, mean over its benchmarks; None if it has none or that is unknown."""
    if key.budget.keeps_all or key.budget.keep is not None:
        return key.budget.keep
    none = comparison.find("none")
    unpruned = [_read(comparison, comparison.of(none, record.cell["task"])) for record in comparison.rows[key] if none]
    known = [read for read in unpruned if read is not None]
    return (1 - (key.budget.prune_rate or 0)) * mean(known) if known and len(known) == len(unpruned) else None


def tokens_read(comparison: Comparison, key: RowKey) -> float | None:
    """Return the visual tokens a row read as its budget counts them, mean over samples and benchmarks.

    That is the mean over decoder layers, or what the last layer read under `budget_kind: final`.
    """
    return _read(comparison, comparison.rows[key])


def _read(comparison: Comparison, records: Iterable[Record]) -> float | None:
    per_layer = [record.visual_tokens_per_layer for record in records if record.visual_tokens_per_layer]
    is_final = comparison.cell["budget_kind"] == "final"
    read = [layers[-1] if is_final else mean(layers) for layers in per_layer]
    return mean(read) if read else None
