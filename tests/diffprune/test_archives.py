"""WebDataset shards and folders as people make them: keys, suffixes, hidden files and joined archives."""

import io
import json
import tarfile
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


@pytest.mark.parametrize("suffix", ["caption", "TEXT", "caption_enriched", "blip.caption"])
def test_a_member_may_be_named_after_its_caption(tmp_path: Path, suffix: str) -> None:
    shard = write_tar(tmp_path / "a.tar", {"1.png": encoded(1), f"1.{suffix}": b"one"})
    assert read_all(open_source(str(shard), seed=0)) == [(1, "one")]


def test_a_shard_without_images_is_refused_with_what_it_has(tmp_path: Path, refusal: Refusal) -> None:
    inner = write_tar(tmp_path / "inner", {"1.png": encoded(1), "1.txt": b"one"}).read_bytes()
    for members in ({"1.tar": inner}, {"1.txt": b"one"}, {"1.jp2": b"", "1.txt": b"one"}):
        shard = write_tar(tmp_path / "outer.tar", members)
        said = refusal(lambda: open_source(str(shard), seed=0))  # noqa: B023
        assert said.startswith(
            f"ConfigError: --data: of {len(members)} members in {shard} none is an image ({', '.join(members)}, ...); "
            "give shards with images (jpg, "
        )


def test_links_in_an_archive_are_mentioned(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", {"1.png": encoded(1), "1.txt": b"one"})
    with tarfile.open(shard, "a") as tar:
        for name, kind in (("2.png", tarfile.LNKTYPE), ("2.txt", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, f"1{name[1:]}"
            tar.addfile(link)
    notes: list[str] = []
    assert read_all(open_source(str(shard), seed=0, mention=notes.append)) == [(1, "one")]
    assert notes == [
        f"--data: {shard} has 2 links to files, and these are not read; pack it with tar --dereference "
        "--hard-dereference"
    ]


def test_folders_hold_keys_apart_and_the_last_of_equal_names_counts(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for shade, folder in enumerate("ab", start=1):
        members |= {f"{folder}/1.png": encoded(shade), f"{folder}/1.txt": folder.encode()}
    shard = write_tar(tmp_path / "a.tar", members)
    with tarfile.open(shard, "a") as tar:
        again = tarfile.TarInfo("b/1.txt")
        again.size = 3
        tar.addfile(again, io.BytesIO(b"new"))
    assert read_all(open_source(str(shard), seed=0)) == [(1, "a"), (2, "new")]


def test_several_images_under_one_key_are_not_guessed_at(tmp_path: Path) -> None:
    members = {"1.5.png": encoded(1), "1.5.txt": b"a", "1.6.png": encoded(2), "1.6.txt": b"b"}
    shard = write_tar(tmp_path / "a.tar", members)
    assert told(open_source(str(shard), seed=0)) == [
        f"{shard} member 1.5.png: several images have the same key, which ends at the first dot: 1.5.png, 1.6.png"
    ]


def test_what_an_operating_system_adds_to_an_archive_is_passed_over(tmp_path: Path) -> None:
    added = ["._1.png", "__MACOSX/._1.png", "__MACOSX/2.png", ".DS_Store", "a/._1.png", "@eaDir/1.png/THUMB_M.jpg"]
    added += ["PaxHeaders.12/1.png", "PaxHeader/1.png", "a/PaxHeaders.0/2.png", "#recycle/2.png", "@__thumb/2.png"]
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


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("images\\1.png", "; write its path with / in place of back-slashes"),
        ("C:\\images\\1.png", "; write its path with / in place of back-slashes"),
        ("https://example.org/1.png", "; images are not downloaded: fetch them, and write their paths"),
        ("file:///images/1.png", "; images are not downloaded: fetch them, and write their paths"),
        ("images/a%20b.png", "; write its path without % codes"),
        ("~/images/1.png", "; a path is taken as it is, so write the home folder out"),
        ("images/1.PNG", ""),
        ("images", ""),
        (".", ""),
    ],
)
def test_a_path_of_which_there_is_no_file_is_explained(tmp_path: Path, name: str, remedy: str) -> None:
    (tmp_path / "images").mkdir()
    for image in ("1.png", "a b.png"):
        (tmp_path / "images" / image).write_bytes(encoded(1))
    write_jsonl(tmp_path / "a.jsonl", [{"image": name, "caption": "a"}])
    (text,) = told(open_source(str(tmp_path), seed=0))
    assert text.endswith(f": there is no such file{remedy}")


def test_absolute_paths_links_and_names_in_capitals_are_read(tmp_path: Path) -> None:
    (tmp_path / "a b.PNG").write_bytes(encoded(1))
    (tmp_path / "link.png").symlink_to(tmp_path / "a b.PNG")
    names = [str(tmp_path / "a b.PNG"), "a b.PNG", "./link.png", f"../{tmp_path.name}/link.png"]
    write_jsonl(tmp_path / "a.JSONL", [{"image": name, "caption": "a"} for name in names])
    assert read_all(open_source(str(tmp_path), seed=0)) == [(1, "a")] * 4
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "linked.jsonl").symlink_to(tmp_path / "a.JSONL")
    absent, *_ = told(open_source(str(tmp_path / "sub"), seed=0))  # paths are from the folder of the link
    assert absent == f"{tmp_path / 'sub' / 'a b.PNG'}: there is no such file"


@pytest.mark.parametrize(
    ("cell", "kind"),
    [("1.png", "str"), ([encoded(1)], "list"), ([{"bytes": encoded(1), "path": None}], "list"), (3, "int")],
)
def test_an_image_of_another_type_is_called_what_it_is(tmp_path: Path, cell: object, kind: str) -> None:
    parquet.write_table(pa.table({"image": [cell, None], "caption": ["a", "b"]}), tmp_path / "a.parquet")
    odd, empty = told(open_source(str(tmp_path), seed=0))
    assert odd.endswith(f"row 0: its image is neither bytes nor {{bytes, path}} (its type is {kind})")
    assert empty.endswith("row 1: there is no image")


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
