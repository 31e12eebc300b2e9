"""Start a run: alone, as one shard, or as one process of a launcher, whose first process merges the answers of all."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from dpbench.evaluation import merging, runner, sharding
from dpbench.evaluation.outcome import Outcome
from dpbench.manifest.schema import Manifest


def run(
    manifest: Manifest,
    out: Path,
    data_root: Path | None,
    shard: sharding.Shard,
    *,
    device: str,
    feature_cache: int,
    wait: bool,
) -> Outcome:
    """Run a manifest, or a shard of it; under a launcher, the first process merges the answers of all.

    Args:
        manifest: what to run.
        out: results go to `out/<manifest name>/`.
        data_root: folder with the benchmarks' data, or None for the hub's cache.
        shard: this process's part.
        device: "auto", "cpu" or "cuda".
        feature_cache: bytes of encoded images to keep for later questions about them.
        wait: wait for another process that holds this run's folder, instead of raising.

    Raises:
        DpbenchError: as `runner.run` and `merging.merge`.
    """
    is_launched = sharding.launcher_shard() is not None
    if is_launched:
        sharding.select_device()
    with sharding.process_group() if is_launched else nullcontext():
        outcome = runner.run(
            manifest, out, data_root, device=device, feature_cache=feature_cache, shard=shard, wait=wait
        )
    if not is_launched or shard.number:
        return outcome
    merged = merging.merge(out / manifest.name, data_root)
    return replace(merged, failed=outcome.failed, feature_cache=outcome.feature_cache)
