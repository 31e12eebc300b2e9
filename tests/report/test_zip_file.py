"""The file to send: everything to check a table by, and nothing of the sender's machine."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from made_records import make_answer, make_record, write_run

from dpbench.errors import RecordError
from dpbench.report import request, zip_file
from dpbench.report.request import Request
from dpbench.storage import contributions, packed_answers, record
from dpbench.storage.journal import Answer
from dpbench.storage.record import Record

TOKEN = "hf_abcdefghijklmnopqrstuvwx"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home" / "somebody"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    params = {"checkpoint": f"{home}/scorers/mine"}
    records = [
        make_record("none", None, "pope", 50.0, weights="/mnt/models/llava", fingerprints={"data": "1"}),
        make_record(
            "diffprune", 16, "pope", 50.0, weights="/mnt/models/llava", params=params, fingerprints={"data": "1"}
        ),
    ]
    records = [replace(each, cell_id=f"cell {at}") for at, each in enumerate(records)]
    records[0] = replace(records[0], environment={"cpu": "a processor", "note": f"cache in {home}/.cache/x, {TOKEN}"})
    scores = {"pope_f1_score": {"prediction": "yes", "ground_truth": "yes"}}
    answers = [make_answer("pope", at, "a", {**scores}) for at in range(2)]
    answers[0].scores["pope_f1_score"]["prediction"] = "no"  # type: ignore[index]
    folder = write_run(tmp_path / "table1", records, {each.cell_id: answers for each in records})
    contributions.pack(folder)
    manifest = {"methods": [{"name": "diffprune", "params": params}], "tasks": ["pope"], "hf_token": "abc def"}
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "environment.json").write_text(json.dumps({"cpu": "a processor", "path": "C:\\Users\\some\\data\\x"}))
    return folder


def read(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def parts(copies: Sequence[Path]) -> Mapping[str, str]:
    return {"where.txt": "\n".join(map(str, copies))}


def test_everything_is_in_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "_page", lambda *_: "<html></html>")
    said = request.report(Request(folders=(run,), bundle=tmp_path / "out.zip"))
    files = read(tmp_path / "out.zip")
    assert said == f"written: {tmp_path / 'out.zip'}"
    assert set(files) == {
        "SHA256SUMS", "report.html", "tables.md", "tables.tex", "tables.csv", "tables.json", "table1/manifest.yaml",
        "table1/environment.json", "table1/records.jsonl", "table1/contributions.npz",
    }  # fmt: skip
    assert b"diffprune" in files["tables.md"]


def test_its_page_has_the_samples_of_the_packed_answers(run: Path, tmp_path: Path) -> None:
    packed_answers.pack(run)
    shutil.rmtree(run / "samples")
    ids = [row.cell_id for row in record.read(run / "records.jsonl", Record)]
    seen: list[dict[str, list[Answer]]] = []
    zip_file.write(tmp_path / "out.zip", [run], lambda copies: seen.append(packed_answers.load(copies[0], ids)) or {})
    assert [len(answers) for answers in seen[0].values()] == [2, 2]
    assert f"table1/{packed_answers.NAME}" not in read(tmp_path / "out.zip"), "answers are on the page alone"


def test_hashes_are_the_files(run: Path, tmp_path: Path) -> None:
    files = read(zip_file.write(tmp_path / "out.zip", [run], parts))
    sums = dict(reversed(line.split("  ")) for line in files.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_no_path_and_no_token_is_in_it(run: Path, tmp_path: Path) -> None:
    told = [str(tmp_path), "somebody", "/mnt/", "Users", TOKEN, "abc def", "/home/"]
    for name, data in read(zip_file.write(tmp_path / "out.zip", [run], parts)).items():
        if not name.endswith(".npz"):
            assert not [word for word in told if word in data.decode()], name


def test_what_it_was_stays_readable(run: Path, tmp_path: Path) -> None:
    files = read(zip_file.write(tmp_path / "out.zip", [run], parts))
    assert yaml.safe_load(files["table1/manifest.yaml"])["methods"][0]["params"]["checkpoint"] == "mine"
    lines = [json.loads(line) for line in files["table1/records.jsonl"].splitlines()]
    assert {line["cell"]["weights"] for line in lines} == {"llava"}
    assert files["where.txt"] == b"table1"


def test_its_records_are_records_with_the_same_numbers(run: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(zip_file.write(tmp_path / "out.zip", [run], parts)) as archive:
        archive.extractall(tmp_path / "again")
    first, again = (record.read(path / "records.jsonl", Record) for path in (run, tmp_path / "again" / "table1"))
    assert [each.score for each in first] == [each.score for each in again]
    assert set(contributions.load(tmp_path / "again" / "table1", again)) == {each.cell_id for each in again}


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (zip_file.write(tmp_path / f"{name}.zip", [run], parts).read_bytes() for name in "ab")
    assert first == second


def test_a_damaged_file_is_not_sent(run: Path, tmp_path: Path) -> None:
    (run / "environment.json").write_text("{")
    with pytest.raises(RecordError, match=r"environment.json is damaged .*; restore it before it is sent"):
        zip_file.write(tmp_path / "out.zip", [run], parts)
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        ("scorers/ablation/diffprune-0", "scorers/ablation/diffprune-0"),
        ("12 ms / token and 3/4/5", "12 ms / token and 3/4/5"),
        ("/data/someone/llava 1.5", "llava 1.5"),
        ("no file matches /data/x/POPE-*.parquet", "no file matches POPE-*.parquet"),
        ("sk-ABCDEFGHIJKLMNOP", "[removed]"),
        ("sdpa", "sdpa"),
    ],
)
def test_only_absolute_paths_and_tokens_are_cleaned(text: str, wanted: str) -> None:
    assert zip_file.clean(text) == wanted
