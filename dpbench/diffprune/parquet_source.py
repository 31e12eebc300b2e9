"""Image-caption pairs in parquet files, or in a dataset of the hub."""

from glob import escape
from pathlib import Path
from typing import Any

from dpbench.diffprune.example import Example, decode, first_line, reading
from dpbench.errors import ConfigError, MissingError

CAPTION_COLUMNS = ("caption_enriched", "caption")  # the first is that of visual-layer/imagenet-1k-vl-enriched


class ParquetSource:
    """Rows of parquet files or of a hub dataset's split "train": an `image`, and one of CAPTION_COLUMNS.

    Args:
        data: what `--data` names: these files, or owner/name on the hub.
        files: *.parquet; none for the hub.

    Raises:
        ConfigError: a column is missing, a file cannot be read, or `datasets` is not installed.
        MissingError: the hub does not have the dataset, or refuses it.
    """

    def __init__(self, data: str, files: list[Path]) -> None:
        rows = _file_rows(data, files) if files else _hub_rows(data)
        self._data, self._caption = data, _caption_column(rows.column_names, data)
        self._rows = _without_decoding(rows.select_columns(["image", self._caption]))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = self._rows[int(index)]
        with reading(f"{self._data} row {index}"):
            return decode(_image_bytes(row["image"]), row[self._caption])


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
    columns = [_caption_column(footer.schema.to_arrow_schema().names, file) for file, footer in footers.items()]
    not_empty = [file for file, footer in footers.items() if footer.num_rows]
    if not not_empty:
        return datasets.Dataset.from_dict({"image": [], columns[0]: []})
    try:
        return datasets.load_dataset(
            "parquet", data_files=[escape(file) for file in not_empty], split="train", columns=["image", columns[0]]
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"--data {data}: its files do not load as one dataset ({first_line(error.__cause__ or error)}); "
            "give a pattern for the files of one dataset, or fetch damaged files again"
        ) from None


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
        return datasets.load_dataset(repository, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MissingError(
            f"--data {repository}: it is neither a file nor a folder here, and the hub gave no split 'train' of such a "
            f"dataset ({first_line(error)}); check the name, log in with hf auth login if it is gated, or fetch it "
            f"where there is a network (hf download --repo-type dataset {repository} --local-dir FOLDER) "
            "and give the folder"
        ) from None


def _caption_column(names: list[str], where: str) -> str:
    """Return the first of CAPTION_COLUMNS that exists; refuse data without one, or without an image."""
    present = [name for name in CAPTION_COLUMNS if name in names]
    if "image" not in names or not present:
        raise ConfigError(
            f"--data: {where} has the columns {', '.join(names)}; it needs 'image' and "
            f"{' or '.join(map(repr, CAPTION_COLUMNS))}, so rename them or give other data"
        )
    return present[0]


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
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise ValueError("there is no image")
    return bytes(cell.get("bytes") or Path(cell["path"]).read_bytes())
