"""Download the benchmarks' data from the hub: only the folders and splits that are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dpbench.errors import ConfigError, DpbenchError, MissingError
from dpbench.machine.hub_cache import hub_errors
from dpbench.storage.locks import explain_missing_locks
from dpbench.tasks import ORGANISATIONS, TASKS, find
from dpbench.tasks.data import origin
from dpbench.tasks.data.origin import Origin
from dpbench.tasks.data.root import configs, pattern

if TYPE_CHECKING:
    from huggingface_hub.hf_api import DatasetInfo, RepoSibling


@dataclass(frozen=True, slots=True)
class Pulled:
    """One repository's files, now on disk.

    Attributes:
        origin: repository, revision and hashes.
        folder: the folder that holds them.
        num_bytes: size of the files that were requested.
    """

    origin: Origin
    folder: Path
    num_bytes: int

    @property
    def size(self) -> str:
        """Return the size as text."""
        return f"{self.num_bytes / 1e9:.2f} GB" if self.num_bytes >= 1e7 else f"{self.num_bytes / 1e3:.0f} kB"


def pull(names: Sequence[str], to: Path | None, revision: str | None = None) -> Iterator[Pulled]:
    """Download benchmarks' data, one repository at a time. Existing files are kept, broken downloads are resumed.

    Args:
        names: as in `dpbench.tasks.TASKS`; none for all ten.
        to: the data root, created if needed; None for the hub's cache.
        revision: commit, tag or branch; by default the commit a task is pinned to, else the hub's main.

    Raises:
        ConfigError: a name is unknown, a revision was given for the cache, or `to` is a file.
        MissingError: the hub cannot be reached, or has no such data or revision.
        DpbenchError: the hub lists a file that would be written outside its folder.
        StorageError: the origin of the files cannot be written.
    """
    if revision is not None and to is None:
        raise ConfigError("--revision needs --to DIR: another revision in the hub's cache would not be found again")
    if to is not None and not next(path for path in (to, *to.absolute().parents) if path.exists()).is_dir():
        raise ConfigError(f"--to: {to} is not a folder")
    tasks = {name: find(name) for name in names or TASKS}
    command = " ".join(
        ["dpbench data pull", *names, *([f"--revision {revision}"] if revision else []), f"--to {to or 'DIR'}"]
    )
    for repository in dict.fromkeys(task.repository for task in tasks.values()):
        readers = [name for name, task in tasks.items() if task.repository == repository]
        pinned = revision or tasks[readers[0]].revision
        info = _find(repository, pinned, command)
        yield _fetch(info, _select_files(info, readers), to and to / repository, pinned)


def _fetch(info: DatasetInfo, siblings: Sequence[RepoSibling], place: Path | None, revision: str | None) -> Pulled:
    """Download files into a folder, or into the hub's cache if there is none."""
    from huggingface_hub import constants, snapshot_download

    try:
        with explain_missing_locks(place or Path(constants.HF_HUB_CACHE), "give --to DIR on a local disk"):
            downloaded = snapshot_download(
                info.id,
                repo_type="dataset",
                revision=info.sha if place else revision,  # the cache is looked up under the requested name
                allow_patterns=[escape(sibling.rfilename) for sibling in siblings],
                local_dir=place,
            )
    except hub_errors() as error:
        raise MissingError(
            f"data pull: {info.id} was interrupted ({_cause(error)}); run the same command again, it resumes there"
        ) from None
    folder = Path(downloaded)
    for sibling in siblings:
        # The hub's client silently returns an existing folder if the connection breaks before it has listed the files.
        if not (folder / sibling.rfilename).is_file():
            raise MissingError(f"data pull: {info.id} is incomplete ({sibling.rfilename} is missing); run it again")
    hashes = {sibling.rfilename: sibling.lfs.sha256 if sibling.lfs else None for sibling in siblings}
    fetched = Origin(info.id, str(info.sha), hashes)
    if place is not None:
        origin.write(place, fetched.merge(origin.read(place)))
    return Pulled(fetched, folder, sum(sibling.size or 0 for sibling in siblings))


def _find(repository: str, revision: str | None, command: str) -> DatasetInfo:
    """Return the repository of the first organisation that has it, with its list of files.

    Args:
        repository: without the organisation.
        revision: commit, tag or branch; None for main.
        command: suggested for another machine if this one has no network.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    revisions = []
    for organisation in ORGANISATIONS:
        name = f"{organisation}/{repository}"
        try:
            return HfApi().dataset_info(name, revision=revision, files_metadata=True)
        except RevisionNotFoundError:
            revisions.append(name)
        except RepositoryNotFoundError:
            continue
        except hub_errors() as error:
            raise MissingError(
                f"data pull: {name} cannot be fetched from {constants.ENDPOINT} ({_cause(error)}); "
                f"run `{command}` on a machine with network and copy that folder here for --data-root"
            ) from None
    if revisions:
        raise MissingError(
            f"data pull: {' and '.join(revisions)} have no revision {revision!r} on the hub; "
            "give another with --revision REVISION --to DIR"
        )
    tried = " and ".join(f"{organisation}/{repository}" for organisation in ORGANISATIONS)
    raise MissingError(f"data pull: the hub has no data set {tried}, or not for you (`hf auth login`)")


def _cause(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _select_files(info: DatasetInfo, names: Sequence[str]) -> list[RepoSibling]:
    """Return the files that benchmarks read; raise for a path that leads out of the folder."""
    selected: dict[str, RepoSibling] = {}
    for name in names:
        task = find(name)
        for glob in (pattern(task, config) for config in configs(task)):
            matching = [sibling for sibling in info.siblings or () if fnmatch(sibling.rfilename, glob)]
            if not matching:
                raise MissingError(f"data pull: {info.id}@{info.sha} has no file {glob}, which task {name} reads")
            selected |= {sibling.rfilename: sibling for sibling in matching}
    for path in selected:
        if PurePosixPath(path).is_absolute() or {"..", ""} & set(path.split("/")) or "\\" in path or ":" in path:
            raise DpbenchError(
                f"data pull: {info.id} lists a file {path!r}, which would be written outside its folder; "
                "nothing was fetched from it"
            )
    return list(selected.values())
