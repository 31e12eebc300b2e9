"""What the hub's cache on this machine holds. No torch, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def commits(repository: str, kind: Literal["model", "dataset"]) -> list[str]:
    """Return the commits of a repository that have files in the cache, whatever its names of branches say."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=kind) / "snapshots"
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and any(path.iterdir()))
