"""What a caption is, in every form of data: a text, the first of a list, the next column where one is empty."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from training_data import encoded, told, write_jsonl, write_tar

from dpbench.diffprune.broken import Broken
from dpbench.diffprune.captions import find_captions
from dpbench.diffprune.data import step_indices, training_batches
from dpbench.diffprune.example import Example, Source
from dpbench.diffprune.sources import open_source

FORMS = ("parquet", "jsonl", "tar")


def open_form(folder: Path, form: str, entries: list[dict[str, Any]]) -> Source:
    """Write entries of captions with an image each, and open them."""
    if form == "parquet":
        columns = {
            name: [entry.get(name) for entry in entries] for name in {name: 0 for row in entries for name in row}
        }
        table = pa.table({"image": [encoded(i) for i in range(len(entries))], **columns})
        parquet.write_table(table, folder / "a.parquet")
    elif form == "jsonl":
        for i in range(len(entries)):
            (folder / f"{i}.png").write_bytes(encoded(i))
        write_jsonl(folder / "a.jsonl", [{"image": f"{i}.png", **entry} for i, entry in enumerate(entries)])
    else:
        members = {f"{i}.png": encoded(i) for i in range(len(entries))}
        write_tar(
            folder / "a.tar", members | {f"{i}.json": json.dumps(entry).encode() for i, entry in enumerate(entries)}
        )
    return open_source(str(folder / f"a.{form}"), seed=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_captions_takes_its_first_that_has_words(tmp_path: Path, form: str) -> None:
    source = open_form(tmp_path, form, [{"caption": ["one ", "two"]}, {"caption": ["", None, "three"]}])
    assert [source[i].caption for i in range(2)] == ["one", "three"]
    assert source[0].captions == ("one", "two")


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ([["one", "two"], ["three"]], ("one", "two", "three")),
        ([[""], [None, " one"]], ("one",)),
        (b" one\n", ("one",)),
        ([b"one", "two"], ("one", "two")),
        ("\u200b", ("\u200b",)),  # no width, but not a space: it stays, as other marks of a text do
    ],
)
def test_captions_in_lists_of_lists_and_as_bytes_are_texts(value: object, captions: tuple[str, ...]) -> None:
    assert find_captions([value]) == captions


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="'utf-8' codec"):
        find_captions([b"\xff\xfe"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nothing", [None, "", " \n", [], [""]])
def test_an_empty_caption_falls_back_to_the_next_column(tmp_path: Path, form: str, nothing: object) -> None:
    as_list = isinstance(nothing, list)  # a column of parquet has one type
    entries = [{"caption_enriched": nothing, "caption": "one"}, {"caption_enriched": ["two"] if as_list else "two"}]
    source = open_form(tmp_path, form, [*entries, {"caption_enriched": nothing, "text": "three"}])
    assert [source[i].caption for i in range(3)] == ["one", "two", "three"]


@pytest.mark.parametrize("form", FORMS)
def test_no_caption_is_said_only_where_there_is_none(tmp_path: Path, form: str) -> None:
    source = open_form(tmp_path, form, [{"caption": "one", "text": None}, {"caption": None, "text": " "}])
    (text,) = told(source)
    assert text.endswith(": there is no caption")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["TEXT", "Caption", "caption_ENRICHED"])
def test_the_name_of_a_caption_is_read_in_any_case(tmp_path: Path, form: str, name: str) -> None:
    assert open_form(tmp_path, form, [{name: "one"}])[0].caption == "one"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, "int"), (1.5, "float"), (True, "bool"), ({"en": "a"}, "dict"), ({}, "dict"), ([1, 2], "list"), ([[]], "list")],
)
def test_a_caption_that_is_no_text_is_called_what_it_is(value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"its caption holds no text \(its type is {kind}\)"):
        find_captions([value])
    assert find_captions([value, "text"]) == ("text",)


@pytest.mark.parametrize(
    "members",
    [
        {"1.txt": b"", "1.json": b'{"caption": "one"}'},
        {"1.txt": b" \n", "1.json": b'{"text": ["one", "two"]}'},
        {"1.json": b'{"url": "a"}', "1.TXT": b"one"},
        {"1.outputs.txt": b"one", "1.json": b'{"width": 3}'},
        {"1.txt": b"\xef\xbb\xbfone"},
        {"1.JSON": b'{"caption": "one"}'},
    ],
)
def test_of_several_members_the_first_with_a_caption_counts(tmp_path: Path, members: dict[str, bytes]) -> None:
    shard = write_tar(tmp_path / "a.tar", {"1.png": encoded(1), **members})
    assert open_source(str(shard), seed=0)[0].caption == "one"


def test_null_in_a_line_costs_that_line_only(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(1))
    lines = [{"image": None, "caption": "a"}, {"image": "1.png", "caption": None}]
    lines += [{"image": None, "file_name": "1.png", "caption": "b"}]
    file = write_jsonl(tmp_path / "a.jsonl", lines)
    source = open_source(str(tmp_path), seed=0)
    assert told(source) == [f"{file} line 1: there is no image", f"{tmp_path / '1.png'}: there is no caption"]
    assert source[2].caption == "b"


class SeveralCaptions:
    """Examples with four captions each, that say whose they are."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Example:
        texts = tuple(f"{index} {letter}" for letter in "abcd")
        return Example(Image.new("RGB", (2, 2)), texts[0], texts)


def drawn(*, first: int = 0, num: int = 30, rank: int = 0, world: int = 1, seed: int = 0) -> list[list[str]]:
    steps = training_batches(
        SeveralCaptions(),
        np.arange(12),
        seed=seed,
        batch_size=6,
        first_step=first,
        num_steps=num,
        num_workers=0,
        broken=Broken(),
        rank=rank,
        world=world,
        caption="random",
    )
    return [[example.caption for example in step] for step in steps]


def test_random_captions_are_a_function_of_seed_and_step() -> None:
    """The same after any resume and with any number of processes; each image has another one in other epochs."""
    whole = drawn()
    assert drawn(first=17, num=13) == whole[17:]
    parts = [drawn(rank=rank, world=4) for rank in range(4)]
    assert [[parts[place % 4][step][place // 4] for place in range(6)] for step in range(30)] == whole
    assert drawn(seed=1) != whole
    for step, texts in enumerate(whole):
        assert [int(text.split()[0]) for text in texts] == step_indices(
            np.arange(12), seed=0, step=step, batch_size=6
        ).tolist()
    letters = [text[-1] for texts in whole for text in texts]
    assert min(letters.count(letter) for letter in "abcd") > 25  # of 180, 45 on average
    assert all(len({text for texts in whole for text in texts if text.startswith(f"{i} ")}) > 1 for i in range(12))
