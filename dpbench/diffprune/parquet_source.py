"""Image-caption pairs in parquet files, or in a dataset of the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from dpbench.diffprune.captions import CAPTION_NAMES, caption_names
from dpbench.diffprune.example import Example, decode, first_line, reading
from dpbench.errors import ConfigError, MissingError
from dpbench.machine import hub_cache
from dpbench.storage.files import explain_disk_errors, is_disk_error
from dpbench.storage.locks import DATASETS_REMEDY, explain_missing_locks


class ParquetSource:
    """Rows of parquet files or of a hub dataset's split "train": an `image`, and one or more of CAPTION_NAMES.

    Args:
        data: what `--data` names: these files, or owner/name on the hub.
        files: *.parquet; none for the hub.

    Raises:
        ConfigError: a column is missing, a file cannot be read or lacks what another has, or `datasets` is not
            installed.
        MissingError: the hub does not have the dataset, or refuses it.
    """

    def __init__(self, data: str, files: list[Path]) -> None:
        rows = _file_rows(data, files) if files else _hub_rows(data)
        self._data, self._captions = data, _caption_columns(rows.column_names, data)
        self._rows = _without_decoding(rows.select_columns(["image", *self._captions]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[int(index)]
        with reading(f"{self._data} row {index}"):
            return decode(_image_bytes(row["image"]), [row[column] for column in self._captions])


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError("--data: parquet files and hub datasets need a library; pip install datasets") from None
    return datasets


def _file_rows(data: str, files: list[Path]) -> Any:
    """Load the local files that have rows; columns are checked first, because loading converts every file to Arrow."""
    datasets = _import_datasets()
    footers = {str(file): _footer(file) for file in files}
    schemas = {file: footer.schema.to_arrow_schema() for file, footer in footers.items()}
    columns = ["image", *_common_captions(schemas)]
    not_empty = [file for file, footer in footers.items() if footer.num_rows]
    if not not_empty:
        return datasets.Dataset.from_dict({column: [] for column in columns})
    try:
        with _explain_cache(datasets):
            return datasets.load_dataset(
                "parquet", data_files=[escape(file) for file in not_empty], split="train", columns=columns
            )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = _find_other_type({file: schemas[file] for file in not_empty}, columns)
        raise ConfigError(
            f"--data {data}: its files do not load as one dataset ({reason or first_line(error.__cause__ or error)}); "
            "give a pattern for the files of one dataset, or fetch damaged files again"
        ) from None


@contextmanager
def _explain_cache(datasets: Any) -> Iterator[None]:
    """Name the cache, to which `datasets` converts everything, where it cannot be locked or written."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    with explain_missing_locks(cache, DATASETS_REMEDY), explain_disk_errors(cache):
        try:
            yield
        except datasets.exceptions.DatasetsError as error:
            if error.__cause__ and is_disk_error(error.__cause__):
                raise error.__cause__ from None
            raise


def _common_captions(schemas: dict[str, Any]) -> list[str]:
    """Return the caption columns that every file has.

    Raises:
        ConfigError: a file lacks the best caption column of another.
    """
    columns = {file: _caption_columns(schema.names, file) for file, schema in schemas.items()}
    best = min((names[0] for names in columns.values()), key=lambda name: CAPTION_NAMES.index(name.lower()))
    has = next(file for file, names in columns.items() if names[0] == best)
    for file, names in columns.items():
        if best not in names:
            raise ConfigError(
                f"--data: {file} lacks the column '{best}' that {has} has; give a pattern for the files of one dataset"
            )
    return [name for name in columns[has] if all(name in names for names in columns.values())]


def _find_other_type(schemas: dict[str, Any], columns: list[str]) -> str:
    """Say which file holds a column as another type than the first file does; empty if none does."""
    (first, expected), *others = schemas.items()
    for file, schema in others:
        for column in columns:
            found, wanted = schema.field(column).type, expected.field(column).type
            if found != wanted:
                return f"{file} has '{column}' as {found}, {first} as {wanted}"
    return ""


def _footer(file: Path) -> Any:
    from pyarrow.parquet import read_metadata

    try:
        return read_metadata(file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--data: {file} is not a complete parquet file ({first_line(error)}); fetch it again"
        ) from None


def _hub_rows(repository: str) -> Any:
    datasets = _import_datasets()
    try:
        _ask_once(repository)
        with _explain_cache(datasets):
            return datasets.load_dataset(repository, split="train")
    except (*hub_cache.hub_errors(), ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingError(
            f"--data {repository}: it is neither a file nor a folder here, and the hub gave no split 'train' of such a "
            f"dataset ({first_line(error)}); check the name, log in with hf auth login if it is gated, or fetch it "
            f"where there is a network (hf download --repo-type dataset {repository} --local-dir FOLDER) "
            "and give the folder"
        ) from None


def _ask_once(repository: str) -> None:
    """Raise the hub's error for a dataset that is not in its cache; `datasets` would try six times."""
    from huggingface_hub import HfApi

    if not hub_cache.commits(repository, "dataset"):
        HfApi().dataset_info(repository)


def _caption_columns(names: list[str], where: str) -> list[str]:
    """Return the columns that hold captions, the best first; refuse data without one, or without an image."""
    captions = caption_names(names)
    if "image" not in names or not captions:
        raise ConfigError(
            f"--data: {where} has the columns {', '.join(names)}; it needs 'image' and "
            f"one of {', '.join(map(repr, CAPTION_NAMES))}, so rename them or give other data"
        )
    return captions


def _without_decoding(rows: Any) -> Any:
    """Make `datasets` return encoded images: `decode` then says which row is broken."""
    datasets = _import_datasets()
    if isinstance(rows.features["image"], datasets.Image):
        return rows.cast_column("image", datasets.Image(decode=False))
    return rows


def _image_bytes(cell: Any) -> bytes:
    """Return the encoded image of a cell: bytes, or {"bytes": bytes or None, "path": file}."""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, dict | None):
        raise ValueError(f"its image is neither bytes nor {{bytes, path}} (its type is {type(cell).__name__})")
    if not cell or not (cell.get("bytes") or cell.get("path")):
        raise ValueError("there is no image")
    return bytes(cell.get("bytes") or Path(cell["path"]).read_bytes())
