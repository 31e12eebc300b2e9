"""Writes the toy data root: ten small mirrors of the benchmarks, with the layout of the hub repositories.

`build` writes the same content for the same seed; a test checks that the shipped files equal it.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, List, Value

from dpbench.storage import files
from dpbench.tasks.data import origin
from dpbench.tasks.data.origin import TOY, Origin
from dpbench.toy.mirror_rows import Row, tables

SHARDS = {"VQAv2/data/validation": 3}
"""Splits with several files, like the large ones on the hub."""


def build(out: Path, seed: int = 0) -> list[Path]:
    """Write the data root, with an origin file in each repository, and return its parquet files."""
    paths = []
    for name, rows in tables(seed).items():
        data = _dataset(rows)
        table = data.with_format("arrow")[:].replace_schema_metadata(data.features.arrow_schema.metadata)
        paths += write_split(table, out, name)
    for repository in dict.fromkeys(path.relative_to(out).parts[0] for path in paths):
        folder = out / repository
        own = {path.relative_to(folder).as_posix(): path for path in paths if path.is_relative_to(folder)}
        hashes = {name: sha256(path.read_bytes()).hexdigest() for name, path in own.items()}
        origin.write(folder, Origin(f"{TOY}/{repository}", f"seed-{seed}", hashes))
    return paths


def write_split(table: pa.Table, out: Path, name: str) -> list[Path]:
    """Write one split as the hub numbers its files, the rows shared out in order.

    Args:
        table: all rows.
        out: the data root.
        name: repository, config and split.
    """
    total = SHARDS.get(name, 1)
    size = -(-table.num_rows // total)
    paths = [out / f"{name}-{shard:05d}-of-{total:05d}.parquet" for shard in range(total)]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for shard, path in enumerate(paths):
        part = table.slice(shard * size, size)
        stream = pa.BufferOutputStream()
        pq.write_table(part, stream, compression="zstd", compression_level=12, use_dictionary=False)
        files.replace(path, stream.getvalue().to_pybytes())
    return paths


def _dataset(rows: list[Row]) -> Dataset:
    """Give rows the hub's column types: images as images, the rest as inferred."""
    plain = Dataset.from_list([{k: v for k, v in row.items() if k not in ("image", "segment")} for row in rows])
    if "image" not in rows[0]:
        return plain
    several = isinstance(rows[0]["image"], list)
    features = Features({**plain.features, "image": List(Image()) if several else Image()})
    if "segment" in rows[0]:
        features["segment"] = List(Value("int64"))
    return Dataset.from_list([_with_image(row, several=several) for row in rows], features=features)


def _with_image(row: Row, *, several: bool) -> Row:
    images = [{"bytes": image, "path": None} for image in (row["image"] if several else [row["image"]])]
    return {**row, "image": images if several else images[0]}
