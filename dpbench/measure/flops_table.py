"""The table of `dpbench profile --flops-only`: FLOPs per stage of every method, and what the numbers include."""

from __future__ import annotations

from collections.abc import Sequence

from dpbench.manifest.schema import Manifest
from dpbench.measure.flops_only import FlopsRow, count_manifest
from dpbench.measure.settings import Settings
from dpbench.report.tables.table import Section, plain_section

TITLES = {
    "tower": "Tower",
    "projector": "Projector",
    "signals": "Signals",
    "reduce": "Reduce",
    "decoder": "Decoder",
    "lm_head": "LM head",
}
UNITS = {"GFLOP": 10**9, "MFLOP": 10**6}
GFLOP_THRESHOLD = 10**11
"""If no row has this many FLOPs, the table uses MFLOP."""
CONVENTION = (
    "FLOPs: 2 per multiply-add of matrix products, convolutions and attention (all L * L pairs, causal or not). "
    "Counted: all layers of the tower, projector, what the method adds (signals: attention rows it requests from the "
    "tower; reduce: its decision before the LLM and its ranking inside, on noise), all decoder layers, LM head at the "
    "last position. Not counted: element-wise work, norms, softmax, QR and SVD."
)


def flops_section(manifest: Manifest, settings: Settings) -> Section:
    """Return the table of FLOPs, with notes below it.

    Raises:
        DpbenchError: see `count_manifest`.
    """
    rows = count_manifest(manifest, text_tokens=settings.text_tokens, image_hw=settings.image_hw)
    cells = table_rows(rows)
    head, *below = notes(rows)
    return plain_section("flops", head, tuple(cells[0]), (tuple(row.values()) for row in cells), below)


def table_rows(rows: Sequence[FlopsRow]) -> list[dict[str, str]]:
    """Return rows by their headings: FLOPs per stage, their sum, and its share of `none`'s."""
    unpruned = {row.backbone: row.total for row in rows if row.method == "none"}
    unit = "GFLOP" if max(row.total for row in rows) >= GFLOP_THRESHOLD else "MFLOP"
    return [_table_row(row, unpruned.get(row.backbone), unit) for row in rows]


def _table_row(row: FlopsRow, unpruned: int | None, unit: str) -> dict[str, str]:
    def format_flops(flops: int, decimals: int) -> str:
        return "-" if row.refusal else f"{flops / UNITS[unit]:,.{decimals}f}"

    return {
        "Method": row.label,
        "Tokens": "-" if row.refusal else f"{row.num_visual:,.0f}",
        **{title: format_flops(row.stages_flops.get(stage, 0), 3) for stage, title in TITLES.items()},
        f"Total {unit}": format_flops(row.total, 1),
        "of none": f"{row.total / unpruned:.1%}" if unpruned and not row.refusal else "-",
    }


def notes(rows: Sequence[FlopsRow]) -> list[str]:
    """Return the heading, what was counted of what, and the sentences below the table."""
    first = rows[0]
    height, width = first.image_hw
    return [
        f"{first.backbone}, one image of {height} x {width} pixels, {first.text_tokens} text tokens, batch size 1, "
        "up to the first token",
        CONVENTION,
        *(f"{row.label}: {row.refusal}" for row in rows if row.refusal),
    ]
