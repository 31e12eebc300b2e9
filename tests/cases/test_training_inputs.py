"""Training data as people have it: what each form is read as, and the one sentence where it cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from small_training import log_rows, train_small
from training_data import NO_IMAGE, encoded, read_all, told, write_jsonl, write_tar

from dpbench.diffprune.data import split
from dpbench.diffprune.sources import open_source
from dpbench.errors import ConfigError

Rows = list[tuple[int, str]]
PAIRS: Rows = [(1, "a red square"), (2, "a blue circle"), (3, "two stars")]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what `datasets` converts out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def shard(folder: Path, member: Callable[[int, str], dict[str, bytes]]) -> None:
    """Write a shard with an image and what `member` returns for each pair."""
    write_tar(folder / "a.tar", {name: data for shade, text in PAIRS for name, data in member(shade, text).items()})


def lines(folder: Path, entry: Callable[[int, str], dict[str, Any]], encoding: str = "utf-8") -> None:
    """Write JSON lines with one key more than the image's."""
    for shade, _ in PAIRS:
        (folder / f"{shade}.png").write_bytes(encoded(shade))
    rows = [json.dumps({"image": f"{shade}.png", **entry(shade, text)}, ensure_ascii=False) for shade, text in PAIRS]
    (folder / "a.jsonl").write_bytes("\r\n".join(rows).encode(encoding))


def table(folder: Path, name: str = "a.parquet", **columns: Any) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    images = [{"bytes": encoded(shade), "path": None} for shade, _ in PAIRS]
    parquet.write_table(pa.table({"image": images, **columns}), path)


TEXTS = [text for _, text in PAIRS]
READ: dict[str, Callable[[Path], object]] = {
    "shard, plain": lambda at: shard(at, lambda i, t: {f"{i}.png": encoded(i), f"{i}.txt": t.encode()}),
    "shard, keys with dots": lambda at: shard(
        at, lambda i, t: {f"{i}.input.png": encoded(i), f"{i}.outputs.txt": t.encode()}
    ),
    "shard, with masks": lambda at: shard(
        at, lambda i, t: {f"{i}.mask.png": encoded(99), f"{i}.png": encoded(i), f"{i}.txt": t.encode()}
    ),
    "shard, JSON in capitals": lambda at: shard(
        at, lambda i, t: {f"{i}.png": encoded(i), f"{i}.json": json.dumps({"TEXT": t}).encode()}
    ),
    "shard, empty text beside JSON": lambda at: shard(
        at,
        lambda i, t: {f"{i}.png": encoded(i), f"{i}.txt": b"", f"{i}.json": json.dumps({"caption": t}).encode()},
    ),
    "lines, of Windows": lambda at: lines(at, lambda _, t: {"caption": t}, "utf-8-sig"),
    "lines, lists as in COCO": lambda at: lines(at, lambda _, t: {"caption": [t, "another"]}),
    "lines, null and then a text": lambda at: lines(at, lambda _, t: {"caption_enriched": None, "caption": t}),
    "table, text column": lambda at: table(at, text=TEXTS),
    "table, large strings": lambda at: table(at, caption=pa.array(TEXTS, pa.large_string())),
    "table, lists": lambda at: table(at, caption=[[text, "another"] for text in TEXTS]),
    "table, in a sub-folder": lambda at: table(at, "train/a.parquet", caption=TEXTS),
    "table, one more column": lambda at: table(at, caption=TEXTS, extra=[1, 2, 3]),
}


@pytest.mark.parametrize("name", READ)
def test_a_usual_form_of_data_is_read_with_every_pair(name: str, tmp_path: Path) -> None:
    READ[name](tmp_path)
    source = open_source(str(tmp_path), seed=0)
    assert (read_all(source), told(source)) == (PAIRS, [])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty archive": (
        lambda at: (at / "a.tar").write_bytes(b""),
        r"a\.tar is truncated or not a tar file \(empty",
    ),
    "lines in UTF-16": (lambda at: lines(at, lambda _, t: {"caption": t}, "utf-16"), r"a\.jsonl line 1 is not JSON \("),
    "conversations": (
        lambda at: lines(at, lambda _, t: {"conversations": [{"from": "gpt", "value": t}]}),
        r"a\.jsonl line 1 has the keys image, conversations, not an image's path and a text; write",
    ),
    "tables with other columns": (
        lambda at: (table(at, "a.parquet", caption_enriched=TEXTS), table(at, "b.parquet", caption=TEXTS)),
        r"b\.parquet lacks the column 'caption_enriched' that .*a\.parquet has",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    write, sentence = REFUSED[name]
    write(tmp_path)
    with pytest.raises(ConfigError, match=sentence) as refused:
        open_source(str(tmp_path), seed=0)
    assert "\n" not in str(refused.value)


def test_a_caption_that_a_shard_lacks_costs_its_image(tmp_path: Path) -> None:
    shard(tmp_path, lambda i, t: {f"{i}.png": encoded(i)} | ({} if i == 2 else {f"{i}.txt": t.encode()}))
    source = open_source(str(tmp_path), seed=0)
    assert [source[i].caption for i in (0, 2)] == ["a red square", "two stars"]
    assert told(source) == [f"{tmp_path / 'a.tar'} member 2.png: there is no caption"]


ODD = [
    ((1, 1), "a dot"),
    ((300, 1), "a line"),
    ((48, 48), "red square " * 50),
    *(((48, 48), text) for text in ("\u200b", "</s>", "<image>", "<image> <image>", "<s></s>", "日本語", "\x00", "a")),
]


def test_tiny_and_long_images_and_strange_captions_are_trained_on(tmp_path: Path) -> None:
    """Each of them is in the held-out set or in the one step; none is broken, and every loss is a number."""
    for i, (size, _) in enumerate(ODD):
        Image.new("RGB", size, (200, 10 * i, 30)).save(tmp_path / f"{i}.png")
    write_jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.png", "caption": text} for i, (_, text) in enumerate(ODD)])
    settings = {"data": str(tmp_path), "num_validation": 5, "batch_size": 6, "steps": 1, "keep": "16"}
    ended = train_small(tmp_path / "out", **settings)
    assert ended.num_broken == 0
    assert all(abs(value) < 1e3 for row in log_rows(tmp_path / "out") for value in row.values())


@pytest.mark.parametrize(("num", "held_out", "sentence"), [
    (1, 1, "of 1 examples, 1 to validate with .* leave 0 to train on"),
    (2, 2, "of 2 examples, 2 to validate with .* leave 0 to train on"),
    (2, 9, "of 2 examples, 9 to validate with .* leave 0 to train on"),
])  # fmt: skip
def test_too_few_pairs_are_counted_in_the_refusal(num: int, held_out: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        split(num, fraction=1, num_validation=held_out, seed=0)


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_data_without_one_usable_pair_is_refused_with_the_first_reason(kind: str, tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(NO_IMAGE if kind == "images" else encoded(i))
    write_jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.png", "caption": "a"} for i in range(6)])
    reason = "PIL does not know the format"
    if kind == "captions":
        write_jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.png", "caption": " \n"} for i in range(6)])
        reason = "there is no caption"
    with pytest.raises(ConfigError, match=rf"none of the 3 held-out images can be read with a caption; .*{reason}"):
        train_small(tmp_path / "out", data=str(tmp_path), num_validation=3)
    assert not (tmp_path / "out").exists()
