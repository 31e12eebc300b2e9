"""What `dpbench profile --flops-only` prints, and the file it writes where `--out` is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpbench.manifest.schema import Manifest
from dpbench.measure.settings import Settings
from dpbench.report.tables.render import render_all
from dpbench.report.tables.table import Section
from dpbench.storage import files


def write_flops(parts: Sequence[tuple[Manifest, Settings]], out: Path | None, *, verify: bool) -> list[Section]:
    """Return the tables of FLOPs, one for each backbone, and write them to `out/<name>/flops.md`.

    Args:
        parts: of one manifest, each on one backbone, and the prompt that is counted.
        out: results folder, or None to write nothing.
        verify: compare three counters instead; the file is flops-verified.md.

    Raises:
        ConfigError: `out` is not writable; nothing is counted then.
        DpbenchError: no method of a part can be counted.
    """
    if out is not None:
        files.check_writable(out)
    sections = [_count(manifest, settings, verify=verify) for manifest, settings in parts]
    if out is not None:
        path = out / parts[0][0].name / ("flops-verified.md" if verify else "flops.md")
        files.write_output("--out", path, f"{render_all(sections, 'markdown')}\n".encode())
    return sections


def _count(manifest: Manifest, settings: Settings, *, verify: bool) -> Section:
    from dpbench.measure.flops_comparison_table import comparison_section
    from dpbench.measure.flops_table import flops_section

    return comparison_section(manifest, settings) if verify else flops_section(manifest, settings)
