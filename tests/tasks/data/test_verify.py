"""Checking data: each kind of damage is found and named; the shipped mirrors are whole."""

import json
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, List
from datasets import Image as ImageColumn
from fakehub import pinned
from PIL import Image
from places import TOY_DATA
from rich.console import Console

from dpbench.cli import commands
from dpbench.tasks import ALL, TASKS, lmms_eval_adapter
from dpbench.tasks.data import origin
from dpbench.tasks.data.expected import expected
from dpbench.tasks.data.verify import Verdict, render, verify

QUIET = Console(quiet=True)
Damage = Callable[[Path], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def check(root: Path, *names: str, quick: bool = False, revision: str | None = None) -> list[Verdict]:
    return verify(names, root, quick=quick, revision=revision, console=QUIET)


def damaged(root: Path, repository: str, file: str, damage: Damage) -> Path:
    """Copy one mirror, damage one file of it, and forget the hashes: what is wrong must be seen in the file itself."""
    shutil.copytree(TOY_DATA / repository, root / repository)
    damage(root / repository / file)
    known = origin.read(root / repository)
    assert known is not None
    origin.write(
        root / repository, origin.Origin("lmms-lab/copy", pinned(f"lmms-lab/{repository}"), dict.fromkeys(known.files))
    )
    return root / repository / file


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(path: Path) -> None:
        pq.write_table(change(pq.read_table(path)), path)

    return damage


def with_image(row: int, image: dict[str, object] | None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        rows = table["image"].to_pylist()
        rows[row] = image
        at = table.schema.get_field_index("image")
        return table.set_column(at, "image", pa.array(rows, table.schema.field("image").type))

    return change


def half_a_jpeg() -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


POPE = "data/test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "{path} is truncated or not a parquet file"),
        (lambda path: path.write_bytes(b""), "{path} is truncated or not a parquet file"),
        (rewritten(lambda table: table.drop_columns(["answer"])), "{path} has no column 'answer'; it has id, "),
        (
            rewritten(lambda table: table.set_column(3, "answer", pa.array([0] * 240))),
            "{path}: column 'answer' is int, expected string",
        ),
        (
            rewritten(with_image(7, {"bytes": b"no image", "path": None})),
            "{path}: image of row 7 cannot be decoded (PIL does not know",
        ),
        (
            rewritten(with_image(200, {"bytes": half_a_jpeg(), "path": None})),
            "{path}: image of row 200 cannot be decoded (",
        ),
        (rewritten(with_image(3, None)), "{path}: image of row 3 is empty"),
        (rewritten(with_image(3, {"bytes": None, "path": "3.jpg"})), "{path}: image of row 3 is empty"),
        (lambda path: None, "POPE/data/test has 240 rows in {folder}, expected 9000"),
    ],
)  # fmt: skip
def test_damage_is_found_in_the_file(root: Path, damage: Damage, message: str) -> None:
    path = damaged(root, "POPE", POPE, damage)
    (verdict,) = check(root, "pope")
    wanted = message.format(path=path, folder=root / "POPE")
    assert [problem for problem in verdict.problems if problem.startswith(wanted)], verdict.problems
    assert "FAILED" in render([verdict])


def test_a_page_that_cannot_be_read_names_its_file(root: Path) -> None:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = pq.read_metadata(path).row_group(0).column(5).data_page_offset
        data[at : at + 64] = bytes(64)
        path.write_bytes(data)

    path = damaged(root, "POPE", POPE, damage)
    (verdict,) = check(root, "pope")
    assert verdict.problems[0].startswith(f"{path} is truncated or not a parquet file (")


def test_a_changed_file_has_another_hash(root: Path) -> None:
    shutil.copytree(TOY_DATA / "POPE", root / "POPE")
    rewritten(lambda table: table)(root / "POPE" / POPE)
    (verdict,) = check(root, "pope")
    assert verdict.problems == (
        f"{root / 'POPE' / POPE} does not have the SHA-256 of the file of toy/POPE@seed-0; remove it and pull again",
    )


def test_the_listed_hashes_hold_even_if_those_beside_the_data_were_changed(root: Path) -> None:
    shutil.copytree(TOY_DATA / "POPE", root / "POPE")
    rewritten(lambda table: table)(root / "POPE" / POPE)
    origin.write(root / "POPE", origin.Origin("toy/POPE", "seed-0", {POPE: None}))
    (verdict,) = check(root, "pope")
    assert "does not have the SHA-256" in verdict.problems[0]


@pytest.mark.parametrize(
    ("revision", "wanted", "message"),
    [
        ("seed-1", None, "is toy/POPE at seed-1, expected seed-0"),
        ("b" * 40, "a" * 40, f"is lmms-lab/POPE at {'b' * 40}, expected {'a' * 40}"),
        (None, "a" * 40, f"does not record its own, expected {'a' * 40}"),
    ],
)
def test_a_wrong_revision_is_named(root: Path, revision: str | None, wanted: str | None, message: str) -> None:
    shutil.copytree(TOY_DATA / "POPE", root / "POPE")
    if revision is None:
        (root / "POPE" / origin.ORIGIN).unlink()
    else:
        owner = "toy" if revision.startswith("seed") else "lmms-lab"
        origin.write(root / "POPE", origin.Origin(f"{owner}/POPE", revision, {POPE: None}))
    (verdict,) = check(root, "pope", revision=wanted)
    assert verdict.problems[0] == f"wrong revision: {root / 'POPE'} {message}"


def test_a_mirror_that_does_not_say_where_it_is_from_is_only_held_to_a_revision_that_was_asked_for(root: Path) -> None:
    shutil.copytree(TOY_DATA / "POPE", root / "POPE")
    (root / "POPE" / origin.ORIGIN).unlink()
    (verdict,) = check(root, "pope")
    assert not any("revision" in each for each in verdict.problems)
    origin.write(root / "POPE", origin.Origin("lmms-lab/POPE", "b" * 40, {POPE: None}))
    for asked, refused in ((None, True), ("any", False), ("bbbb", False)):
        (verdict,) = check(root, "pope", revision=asked)
        assert any("wrong revision" in each for each in verdict.problems) == refused


def test_a_file_of_another_revision_is_named(root: Path) -> None:
    shutil.copytree(TOY_DATA / "POPE", root / "POPE")
    origin.write(root / "POPE", origin.Origin("toy/POPE", "seed-0", {"data/test-00000-of-00009.parquet": None}))
    (verdict,) = check(root, "pope")
    assert "is not one of the files of toy/POPE@seed-0" in verdict.problems[0]


def test_an_unreadable_origin_is_one_problem(root: Path) -> None:
    shutil.copytree(TOY_DATA / "POPE", root / "POPE")
    (root / "POPE" / origin.ORIGIN).write_text("{")
    (verdict,) = check(root, "pope")
    assert "not what `dpbench data pull` writes" in verdict.problems[0]


def test_an_image_that_a_question_needs_and_is_not_there_is_named(root: Path) -> None:
    file = "testdev_balanced_images/testdev-00000-of-00001.parquet"
    shutil.copytree(TOY_DATA / "GQA", root / "GQA")
    rewritten(lambda table: table.set_column(0, "id", pa.array([f"other{n}" for n in range(86)])))(root / "GQA" / file)
    known = json.loads((root / "GQA" / origin.ORIGIN).read_text())
    origin.write(root / "GQA", origin.Origin("toy/GQA", "seed-x", dict.fromkeys(known["files"])))
    images = check(root, "gqa", revision="seed-x")[1]
    assert images.problems == ("86 images that questions ask about are missing, '00000' first",)


def test_quick_decodes_a_few_images_and_still_reads_every_footer(root: Path) -> None:
    damaged(root, "POPE", POPE, rewritten(with_image(0, {"bytes": b"no image", "path": None})))
    (verdict,) = check(root, "pope", quick=True)
    assert verdict.num_rows == 240
    assert 0 < verdict.num_images < 20
    assert "image of row 0 cannot be decoded" in verdict.problems[0]


def test_the_shipped_mirrors_are_whole_and_verify_takes_nothing_on_trust() -> None:
    verdicts = check(TOY_DATA)
    assert [each.problems for each in verdicts] == [()] * 11
    assert [each.task for each in verdicts] == ["gqa", *TASKS]
    assert all(each.num_hashed == each.num_files > 0 for each in verdicts)
    assert sum(each.num_images for each in verdicts) == sum(each.num_rows for each in verdicts[1:])


@pytest.mark.parametrize(("damage", "code"), [(False, 0), (True, 1)])
def test_the_exit_code_says_whether_anything_failed(
    root: Path, damage: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(TOY_DATA, root)
    if damage:
        (root / "MME/data/test-00000-of-00001.parquet").unlink()
    monkeypatch.setattr(sys, "argv", ["dpbench", "data", "verify", "mme", "pope", "--data-root", str(root)])
    with pytest.raises(SystemExit) as done:
        commands.main()
    printed = capsys.readouterr().out
    assert done.value.code == code
    assert ("fetch them with `dpbench data pull mme --to" in printed) == damage
    assert "POPE/data/test" in printed


@pytest.mark.parametrize("name", list(ALL))
def test_every_column_a_task_reads_has_a_kind_to_be_held_to(name: str) -> None:
    task = ALL[name]
    wanted = expected(task, task.config, None)
    assert set(wanted.columns) == set(task.columns)
    assert wanted.rows == task.num_rows


def hub_like(table: pa.Table) -> pa.Table:
    """Store a mirror as the hub may: narrow integers, long strings, columns nobody here reads."""
    for at, field in enumerate(table.schema):
        if field.type == pa.int64():
            table = table.set_column(at, field.name, table[field.name].cast(pa.int32()))
        elif field.type == pa.string():
            table = table.set_column(at, field.name, table[field.name].cast(pa.large_string()))
    table = table.append_column("groups", pa.array([{"global": None, "local": "x"}] * table.num_rows))
    features = Features.from_arrow_schema(table.replace_schema_metadata(None).schema)
    if "image" in features:
        several = pa.types.is_list(table.schema.field("image").type)
        features["image"] = List(ImageColumn()) if several else ImageColumn()
    return table.replace_schema_metadata(features.arrow_schema.metadata)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_hubs_own_storage_is_read_the_same(name: str, root: Path) -> None:
    """Several hash-named shards, other widths, further columns: same requests, no complaint about columns."""
    repository = TASKS[name].repository
    shutil.copytree(TOY_DATA / repository, root / repository)
    for first in sorted((root / repository).rglob("*-00000-of-*.parquet")):
        stem = first.name.split("-00000-of-")[0]
        parts = sorted(first.parent.glob(f"{stem}-*.parquet"))
        table = pa.concat_tables([pq.read_table(part) for part in parts])
        for part in parts:
            part.unlink()
        half = table.num_rows // 2
        for number, piece in enumerate((table.slice(0, half), table.slice(half))):
            path = first.parent / f"{stem}-{number:05d}-of-00002-0123456789abcdef.parquet"
            pq.write_table(hub_like(piece), path, row_group_size=64)
    (root / repository / origin.ORIGIN).unlink()
    shipped, stored = (lmms_eval_adapter.build(name, place, limit=None) for place in (TOY_DATA, root))
    assert stored.requests == shipped.requests
    assert stored.images(stored.requests[-1])[0].tobytes() == shipped.images(shipped.requests[-1])[0].tobytes()
    problems = [problem for verdict in check(root, name) for problem in verdict.problems]
    assert all("rows in" in problem for problem in problems), problems
