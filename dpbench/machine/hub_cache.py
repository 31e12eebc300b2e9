"""What the hub's cache on this machine holds, and the errors of the hub's client. No torch, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def commits(repository: str, kind: Literal["model", "dataset"]) -> list[str]:
    """Return the commits of a repository that have files in the cache, whatever its names of branches say."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind) / "snapshots"
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and any(path.iterdir()))


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the hub's client raises; its HTTP library changes with its version."""
    from huggingface_hub import errors

    return (errors.HTTPError, OSError)  # type: ignore[attr-defined]
