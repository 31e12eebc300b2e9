"""What `dpbench profile --flops-only` prints, and the file it writes where `--out` is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpbench.manifest.schema import Manifest
from dpbench.measure.settings import Settings
from dpbench.storage import files


def write_flops(parts: Sequence[tuple[Manifest, Settings]], out: Path | None, *, verify: bool) -> str:
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
    text = "\n\n".join(_count(manifest, settings, verify=verify) for manifest, settings in parts)
    if out is not None:
        path = out / parts[0][0].name / ("flops-verified.md" if verify else "flops.md")
        files.write_output("--out", path, f"{text}\n".encode())
    return text


def _count(manifest: Manifest, settings: Settings, *, verify: bool) -> str:
    from dpbench.measure.flops_comparison_table import comparison_table
    from dpbench.measure.flops_table import flops_table

    return comparison_table(manifest, settings) if verify else flops_table(manifest, settings)
