"""Image-caption pairs in every form of training data, written by tests, and what a source makes of them."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from dpbench.diffprune import data
from dpbench.diffprune.example import BrokenError, Example, Source

Refusal = Callable[[Callable[[], object]], str]
"""The fixture `refusal`."""
NO_IMAGE = b"these bytes are no image"


def encoded(shade: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    """A small picture of one shade of grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).convert(mode).save(buffer, form)
    return buffer.getvalue()


def shade(example: Example) -> int:
    pixels = np.asarray(example.image)
    assert pixels.shape == (4, 6, 3)
    return round(float(pixels.mean()))


def read_all(source: Source) -> list[tuple[int, str]]:
    examples = [source[index] for index in range(len(source))]
    return [(shade(example), example.caption) for example in examples]


def write_parquet(path: Path, images: Sequence[bytes | None], captions: Sequence[str | None], name: str) -> None:
    """Write the columns of ImageNet-1K-VL-Enriched, the captions under a name."""
    box = {"bbox": datasets.Sequence(datasets.Value("float32")), "label": datasets.Value("string")}
    issue = {"issue_type": datasets.Value("string"), "confidence": datasets.Value("float64")}
    features = {
        "image_id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["tench", "goldfish"]),
        "label_bbox_enriched": [box],
        name: datasets.Value("string"),
        "issues": [issue],
    }
    num = len(images)
    columns = {
        "image_id": [f"n{i:08}.JPEG" for i in range(num)],
        "image": [image and {"bytes": image, "path": None} for image in images],
        "label": [0] * num,
        "label_bbox_enriched": [[{"bbox": [0.0, 0.0, 3.0, 3.0], "label": "Bird"}]] * num,
        name: captions,
        "issues": [[{"issue_type": "dark", "confidence": 0.5}]] * num,
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_jsonl(path: Path, entries: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def told(source: Source) -> list[str]:
    """Return the text of every broken example."""
    items = [data._Readable(source)[index][1] for index in range(len(source))]
    return [str(item) for item in items if isinstance(item, BrokenError)]
