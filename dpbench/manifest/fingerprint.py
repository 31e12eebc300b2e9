"""Hashes and versions of everything besides a cell's own fields that can change its answers. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from dpbench import backbones, registry, tasks
from dpbench.errors import MissingError
from dpbench.manifest.cell import Cell
from dpbench.manifest.source_files import source_files, source_hash
from dpbench.tasks.data.root import data_files

_BLOCK = 1 << 16
_WHOLE_UP_TO = 1 << 24
_SAMPLES = 64


def fingerprints(cell: Cell, data_root: Path | None) -> dict[str, str]:
    """Return the named hashes and versions a cell runs under.

    Raises:
        MissingError: weights or data are missing.
    """
    return {
        "weights": weights_hash(cell.backbone, cell.entry.weights, cell.entry.revision),
        "task": _task(cell.task),
        "data": _data(cell.task, data_root),
        "source": _source(registry.find(cell.method).module),
        **_method_files(cell),
        **_versions(),
    }


@cache
def _versions() -> dict[str, str]:
    """Return the versions of the packages that can change an answer; reading one takes milliseconds a cell."""
    return {name: version(name.replace("_", "-")) for name in ("torch", "transformers", "lmms_eval")}


def files_hash(paths: Iterable[Path]) -> str:
    """Hash files by name and content; of a large file its size, header and 64 evenly spaced blocks."""
    digest = sha256()
    for path in paths:
        stat = path.stat()
        digest.update(_file_hash(path, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()[:16]


@cache
def _file_hash(path: Path, size: int, _mtime_ns: int) -> bytes:
    digest = sha256(json.dumps([path.name, size]).encode())
    with path.open("rb") as stream:
        if size <= _WHOLE_UP_TO:
            digest.update(stream.read())
        else:
            for at in (0, *range(_BLOCK, size, size // _SAMPLES)):
                stream.seek(at)
                digest.update(stream.read(_BLOCK))
    return digest.digest()


@cache
def weights_hash(backbone: str, weights: str | None, revision: str | None) -> str:
    """Hash a backbone's weights and configuration.

    Raises:
        MissingError: they are missing.
    """
    folder = backbones.locate(backbone, weights, revision)
    paths = sorted(path for pattern in ("*.safetensors", "*.json", "*.jinja") for path in folder.glob(pattern))
    if not any(path.suffix == ".safetensors" for path in paths):
        raise MissingError(f"--backbone {backbone}: there are no *.safetensors in {folder}")
    return files_hash(paths)


@cache
def _task(task: str) -> str:
    return files_hash(tasks.yaml_paths(task))


@cache
def _data(task: str, data_root: Path | None) -> str:
    images = tasks.find(task).images
    paths = [*data_files(task, data_root), *(data_files(task, data_root, images) if images else ())]
    for path in paths:
        _check_footer(task, path)
    return files_hash(paths)


def _check_footer(task: str, path: Path) -> None:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        read_metadata(path)
    except (ArrowException, OSError):
        raise MissingError(
            f"task {task}: {path} is truncated or not a parquet file; remove it, "
            f"then fetch it with dpbench data pull {task}"
        ) from None


def _method_files(cell: Cell) -> dict[str, str]:
    """Hash the method's own weight files, if it has any."""
    paths = registry.load(cell.method, cell.params).files(cell.backbone)
    return {"method_files": files_hash(paths)} if paths else {}


@cache
def _source(method_module: str) -> str:
    return source_hash(source_files(method_module))
