"""A run as one zip file to send: page, tables, manifest, records, environment and hashes, without the sender's paths.

Tables and page are made from cleaned copies of the run's files, so they cannot show what was removed.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dpbench.errors import ConfigError, RecordError
from dpbench.storage import contributions, packed_answers, plain_yaml
from dpbench.storage.files import write_output

RUN_FILES = ("manifest.yaml", "environment.json", "records.jsonl", "profile.jsonl")
HASHES = "SHA256SUMS"
HIDDEN = "[removed]"
Parts = Callable[[Sequence[Path]], Mapping[str, str]]
"""Builds further files, text by name, from run folders."""

_SINCE = (1980, 1, 1, 0, 0, 0)
_PATH = re.compile(r"(?<![\w:/.~-])(?:[A-Za-z]:)?(?:[/\\][\w.@+~-]+)*[/\\][\w.@+~-]+[/\\]([\w.@+~-]+)")
_TOKEN = re.compile(r"\b(?:hf_|sk-|gh[a-z]_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}")
_SECRET = re.compile(r"(?i)token$|secret|password|authorization|api_?key")


def write(out: Path, folders: Sequence[Path], parts: Parts) -> Path:
    """Write a bundle.

    Args:
        out: the zip file.
        folders: run folders; their manifest, records, profiles, environment and packed contributions go in.
        parts: builds the tables and the page.

    Returns:
        The file written.

    Raises:
        ConfigError: two run folders have one name, or `out` cannot be written.
        RecordError: a run's file is damaged.
    """
    names = [folder.resolve().name for folder in folders]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--bundle: two of the run folders are called {repeated[0]!r}; rename one")
    with TemporaryDirectory() as place:
        copies = [_copy(folder, Path(place) / name) for folder, name in zip(folders, names, strict=True)]
        files = {f"{copy.name}/{path.name}": path.read_bytes() for copy in copies for path in _copied_files(copy)}
        files |= {name: text.replace(f"{place}/", "").encode() for name, text in parts(copies).items()}
    sums = "".join(f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    write_output("--bundle", out, _zip_bytes({**files, HASHES: sums.encode()}))
    return out


def _zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return a zip archive; the same files give the same bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _SINCE), data, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _copied_files(copy: Path) -> list[Path]:
    return [copy / name for name in (*RUN_FILES, contributions.NAME) if (copy / name).is_file()]


def _copy(folder: Path, copy: Path) -> Path:
    """Write cleaned copies of a run's files; its answers contain no paths and are linked for the page.

    The copies are written directly, without storage.files: they are in a temporary folder that an error removes.
    """
    copy.mkdir()
    _check_inside(folder)
    for name in RUN_FILES:
        if (folder / name).is_file():
            (copy / name).write_text(_clean_file(folder / name), encoding="utf-8")
    packed = folder / contributions.NAME
    if packed.is_file():
        (copy / packed.name).write_bytes(packed.read_bytes())
    for answers in (folder / "samples", folder / packed_answers.NAME):
        if answers.exists():
            (copy / answers.name).symlink_to(answers.resolve(), target_is_directory=answers.is_dir())
    return copy


def _check_inside(folder: Path) -> None:
    """Refuse a link out of the run folder: the file behind it may be private, and a bundle is made to be sent."""
    names = (*RUN_FILES, contributions.NAME, packed_answers.NAME)
    for path in (*(folder / name for name in names), *(folder / "samples").glob("*")):
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RecordError(f"{path} is a link that leads out of the run folder; replace it by the file itself")


def _clean_file(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".yaml":
            return plain_yaml.dump(clean(plain_yaml.load(text)[0]))
        if path.suffix == ".json":
            return json.dumps(clean(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
        rows = [json.loads(line) for line in text.split("\n") if line]
    except ValueError as error:
        raise RecordError(f"{path} is damaged ({error}); restore it before it is sent") from None
    return "".join(json.dumps(clean(row), ensure_ascii=False) + "\n" for row in rows)


def clean(value: Any, name: str = "") -> Any:
    """Return data without absolute paths and without what looks like a token.

    A path keeps its last part: which checkpoint it was stays readable.
    """
    if isinstance(value, dict):
        return {key: clean(entry, str(key)) for key, entry in value.items()}
    if isinstance(value, list):
        return [clean(entry, name) for entry in value]
    if not isinstance(value, str):
        return value
    if _SECRET.search(name):
        return HIDDEN
    if Path(value).is_absolute():
        return Path(value).name
    text = value.replace(f"{Path.home()}/", "") if Path.home() != Path("/") else value
    return _TOKEN.sub(HIDDEN, _PATH.sub(lambda hit: hit[1], text))
