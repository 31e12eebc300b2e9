"""From flags, or a manifest, to what `dpbench visualize` draws. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpbench.budget import BudgetRequest
from dpbench.cli.arguments import CellFlags, build_manifest
from dpbench.manifest.schema import Manifest

BACKBONE = "toy-llava"


def read_fields(path: Path | None, flags: CellFlags) -> dict[str, Any]:
    """Return backbone, methods, budget and protocol of a picture, as fields of `visualize.request.Request`.

    Args:
        path: a manifest file or the name of a shipped one; None if flags say all.
        flags: describe one cell, or change a manifest's backbone, weights and protocol.

    Raises:
        ConfigError: flags that do not go together, or an unknown name.
    """
    if path is not None:
        return _read_manifest(build_manifest(path, flags))
    return {
        "methods": flags.methods,
        "backbone": flags.backbone or BACKBONE,
        "budget": BudgetRequest(next(iter(flags.keep), None), next(iter(flags.prune_rate), None)),
        **flags.backbone_fields,
        **flags.protocol,
    }


def _read_manifest(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest's first backbone, first budget and all methods."""
    entry, protocol = manifest.backbone, manifest.resolved_protocol()
    return {
        "methods": [method.name for method in manifest.methods],
        "params": {method.name: method.params_on(entry.name) for method in manifest.methods},
        "backbone": entry.name,
        "budget": manifest.budget_requests("")[0],
        "weights": entry.weights,
        "revision": entry.revision,
        "dtype": protocol.dtype,
        "image_aspect": protocol.image_aspect,
    }
