"""The table of `dpbench profile --flops-only --verify`: three counts of each method, and what no counter sees."""

from __future__ import annotations

from collections.abc import Sequence

from dpbench.manifest.schema import Manifest
from dpbench.measure.flops_comparison import (
    COUNTERS,
    FORMULA,
    FULL_CPU,
    FULL_META,
    MINIATURE,
    MINIATURE_RATE,
    ComparisonRow,
    compare,
)
from dpbench.measure.settings import Settings
from dpbench.report.tables.table import Section, plain_section

BLIND_SPOTS = (
    "No counter sees element-wise work, norms, softmax, rotations, look-ups, sorting and top-k; the closed form omits "
    "them as well.",
    "Fused attention kernels: torch's counter does not know all of them, so attention runs as plain matrix products "
    "while it counts; fvcore has no handle for them, so the kernel has one of ours.",
    "A method's decisions have no closed form: that column takes them from torch's counter, run on noise.",
)


def comparison_section(manifest: Manifest, settings: Settings) -> Section:
    """Return the table of the three counts of every method, with notes below it.

    Raises:
        DpbenchError: see `compare`.
    """
    rows = compare(manifest, text_tokens=settings.text_tokens, image_hw=settings.image_hw)
    cells = [table_row(row) for row in rows]
    head = f"{manifest.backbone.name}: FLOPs of one forward by three counters"
    below = notes(manifest.backbone.name, rows)
    return plain_section("flops-verified", head, tuple(cells[0]), (tuple(row.values()) for row in cells), below)


def table_row(row: ComparisonRow) -> dict[str, str]:
    """Return a row by its headings: MFLOP, and the difference from the closed form."""
    formula = row.flops.get(FORMULA)

    def difference(name: str) -> str:
        if formula is None or name not in row.flops:
            return "-"
        return f"{100 * (row.flops[name] - formula) / formula:+.3f} %"

    counts = {name: f"{row.flops[name] / 1e6:,.3f}" if name in row.flops else "-" for name in (FORMULA, *COUNTERS)}
    return {
        "Method": row.label,
        "Size": row.size,
        "Closed form MFLOP": counts[FORMULA],
        "torch MFLOP": counts["torch"],
        "torch differs": difference("torch"),
        "fvcore MFLOP": counts["fvcore"],
        "fvcore differs": difference("fvcore"),
    }


def notes(backbone: str, rows: Sequence[ComparisonRow]) -> list[str]:
    """Return the sentences below the table: what each size means, what no counter sees, and the reason of each dash."""
    return [
        *_size_notes(backbone, rows),
        *BLIND_SPOTS,
        *(
            f"{row.label}: no counter sees {', '.join(row.decompositions)} (decompositions)."
            for row in rows
            if row.decompositions
        ),
        *(
            f"{row.label}: how much it computes depends on the image, so a whole forward can differ from the closed "
            f"form; between two noise images it changes by {row.content_flops / 1e6:,.3f} MFLOP."
            for row in rows
            if row.content_flops
        ),
        *(note for row in rows for note in _dash_notes(row)),
    ]


def _size_notes(backbone: str, rows: Sequence[ComparisonRow]) -> list[str]:
    """Return what each size in the table means, and why the full size could not be counted."""
    sizes = {row.size for row in rows}
    meanings = {
        FULL_META: f"{FULL_META}: {backbone} at its published size. Tower and decoder run on the meta device; the "
        "method's decisions, which read values, run on noise on the CPU, and at its cuts the first tokens are kept.",
        FULL_CPU: f"{FULL_CPU}: a whole forward of {backbone} on the CPU.",
        MINIATURE: f"{MINIATURE}: a whole forward of a small model of the same family on the CPU; methods "
        f"remove {MINIATURE_RATE:.0%} of its visual tokens, whatever the budget.",
    }
    refusals = dict.fromkeys(row.full_size_refusal for row in rows if row.full_size_refusal)
    return [
        *(meaning for size, meaning in meanings.items() if size in sizes),
        *(f"{backbone} cannot be counted at full size on the meta device: {refusal}" for refusal in refusals),
    ]


def _dash_notes(row: ComparisonRow) -> list[str]:
    """Return why cells of a row are dashes, one sentence per reason."""
    ways_by_reason: dict[str, list[str]] = {}
    for way, reason in row.reasons.items():
        ways_by_reason.setdefault(reason, []).append(way)
    return [f"{row.label} ({', '.join(ways)}): {reason}" for reason, ways in ways_by_reason.items()]
