"""WebDataset shards and folders as people make them: keys, suffixes, hidden files and joined archives."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from training_data import Refusal, encoded, read_all, told, write_jsonl, write_tar

from dpbench.diffprune.sources import find_files, open_source


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("1.input.png", "1.outputs.txt"),
        ("1.png", "1.outputs.txt"),
        ("1.INPUT.PNG", "1.Txt"),
        ("1.JPeG", "1.TXT"),
        ("./1.png", "1.txt"),
        ("v1.0/1.png", "v1.0/1.txt"),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_file_name_and_suffixes_have_no_case(
    tmp_path: Path, image: str, text: str
) -> None:
    if image.startswith("./"):
        text = f"./{text}"
    form = "JPEG" if "JP" in image else "PNG"
    shard = write_tar(tmp_path / "a.tar", {image: encoded(7, form), text: b"seven"})
    assert read_all(open_source(str(shard), seed=0)) == [(7, "seven")]


def test_the_image_with_a_plain_suffix_is_the_one(tmp_path: Path) -> None:
    members = {"1.mask.png": encoded(99), "1.png": encoded(1), "1.depth.png": encoded(98), "1.txt": b"one"}
    shard = write_tar(tmp_path / "a.tar", members)
    assert read_all(open_source(str(shard), seed=0)) == [(1, "one")]


def test_several_images_under_one_key_are_not_guessed_at(tmp_path: Path) -> None:
    members = {"1.5.png": encoded(1), "1.5.txt": b"a", "1.6.png": encoded(2), "1.6.txt": b"b"}
    shard = write_tar(tmp_path / "a.tar", members)
    assert told(open_source(str(shard), seed=0)) == [
        f"{shard} member 1.5.png: several images have the same key, which ends at the first dot: 1.5.png, 1.6.png"
    ]


def test_what_an_operating_system_adds_to_an_archive_is_passed_over(tmp_path: Path) -> None:
    added = ["._1.png", "__MACOSX/._1.png", "__MACOSX/2.png", ".DS_Store", "a/._1.png", "@eaDir/1.png/THUMB_M.jpg"]
    members = {name: b"\0\5\x16\7 of the system" for name in [*added, "Thumbs.db", "desktop.ini"]}
    shard = write_tar(tmp_path / "a.tar", members | {"1.png": encoded(1), "1.txt": b"one", "._1.txt": b"no"})
    assert read_all(open_source(str(shard), seed=0)) == [(1, "one")]


def test_what_an_operating_system_adds_to_a_folder_is_passed_over(tmp_path: Path) -> None:
    for folder in (tmp_path / "train", tmp_path / "__MACOSX", tmp_path / ".cache"):
        folder.mkdir()
        for name in ("a.tar", "._a.tar"):
            write_tar(folder / name, {"1.png": encoded(1), "1.txt": b"one"})
    for where in (tmp_path, tmp_path / "train", tmp_path / "train" / "*.tar"):
        assert find_files(str(where)) == [tmp_path / "train" / "a.tar"]
    hidden = tmp_path / ".cache"  # a folder that the user names may be hidden
    assert find_files(str(hidden)) == [hidden / "a.tar"]


@pytest.mark.parametrize("suffix", ["TAR", "Tar"])
def test_the_suffix_of_a_data_file_has_no_case(tmp_path: Path, suffix: str) -> None:
    write_tar(tmp_path / f"a.{suffix}", {"1.png": encoded(1), "1.txt": b"one"})
    assert read_all(open_source(str(tmp_path), seed=0)) == [(1, "one")]


def test_what_is_behind_the_end_mark_is_mentioned(tmp_path: Path) -> None:
    """Archives that were joined with cat: the first is read, and it is said that there is more."""
    first = write_tar(tmp_path / "a.tar", {"1.png": encoded(1), "1.txt": b"one"})
    second = write_tar(tmp_path / "b.tar", {"2.png": encoded(2), "2.txt": b"two"})
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    notes: list[str] = []
    assert read_all(open_source(str(joined), seed=0, mention=notes.append)) == [(1, "one")]
    (note,) = notes
    assert note.startswith(f"--data: {joined} goes on for ")
    assert "these are not read" in note
    assert "tar --concatenate" in note


def test_zeros_behind_the_end_mark_are_padding(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"1.png": encoded(1), "1.txt": b"one"})
    shard.write_bytes(shard.read_bytes() + bytes(3 << 20))
    notes: list[str] = []
    open_source(str(shard), seed=0, mention=notes.append)
    assert notes == []


def test_back_slashes_in_a_path_are_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(encoded(1))
    write_jsonl(tmp_path / "a.jsonl", [{"image": "images\\1.png", "caption": "a"}])
    (text,) = told(open_source(str(tmp_path), seed=0))
    assert text.endswith(": there is no such file; write its path with / in place of back-slashes")


@pytest.mark.parametrize(
    ("first", "second", "lacks", "has"),
    [
        ({"caption_enriched": ["a"]}, {"caption": ["a"]}, "1", "0"),
        ({"caption": ["a"]}, {"caption_enriched": ["a"], "caption": ["b"]}, "0", "1"),
    ],
)
def test_a_parquet_file_without_the_caption_column_of_another_is_named(
    tmp_path: Path, refusal: Refusal, first: dict[str, object], second: dict[str, object], lacks: str, has: str
) -> None:
    for number, columns in enumerate((first, second)):
        parquet.write_table(pa.table({"image": [encoded(1)], **columns}), tmp_path / f"{number}.parquet")
    said = refusal(lambda: open_source(str(tmp_path), seed=0))
    assert said == (
        f"ConfigError: --data: {tmp_path / lacks}.parquet lacks the column 'caption_enriched' that "
        f"{tmp_path / has}.parquet has; give a pattern for the files of one dataset"
    )


def test_a_parquet_file_with_another_type_is_named(tmp_path: Path, refusal: Refusal) -> None:
    images = {"0": [{"bytes": encoded(1), "path": None}], "1": [encoded(1)]}
    for name, cells in images.items():
        parquet.write_table(pa.table({"image": cells, "caption": ["a"]}), tmp_path / f"{name}.parquet")
    said = refusal(lambda: open_source(str(tmp_path), seed=0))
    assert f"({tmp_path / '1.parquet'} has 'image' as binary, {tmp_path / '0.parquet'} as struct<" in said


def test_parquet_files_may_differ_in_columns_that_are_not_read(tmp_path: Path) -> None:
    table = {"image": [encoded(1)], "caption": ["a"]}
    parquet.write_table(pa.table({**table, "label": [3]}), tmp_path / "0.parquet")
    parquet.write_table(pa.table({**table, "caption": pa.array(["b"], pa.large_string())}), tmp_path / "1.parquet")
    parquet.write_table(pa.table({**table, "text": ["only here"]}), tmp_path / "2.parquet")
    assert [text for _, text in read_all(open_source(str(tmp_path), seed=0))] == ["a", "b", "a"]


def test_json_lines_of_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(1))
    line = json.dumps({"image": "1.png", "caption": "one"})
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n{line}\r\n".encode())
    assert read_all(open_source(str(tmp_path), seed=0)) == [(1, "one")] * 2
