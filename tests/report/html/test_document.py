"""The page: one file that needs nothing, says what the records say, and runs nothing that is in them."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import page_runs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_records import make_profile, make_record, write_run
from PIL import Image

from dpbench.errors import ConfigError
from dpbench.report import runs
from dpbench.report.html import answers, document, samples, thumbnails
from dpbench.storage import packed_answers, record
from dpbench.storage.journal import pack_indices


class Found(HTMLParser):
    """Scripts, styles, policy and everything that would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data = self.policy = ""
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self._into = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        self.fetched += [given[name] for name in ("src", "href") if name in given and not given[name].startswith("#")]
        self.handlers += [name for name in given if name.startswith("on") or name == "style"]
        self._into = {"application/json": "data"}.get(given.get("type", ""), "script") if tag == "script" else tag
        if self._into == "script":
            self.scripts.append("")

    def handle_data(self, text: str) -> None:
        if self._into == "script":
            self.scripts[-1] += text
        if self._into == "data":
            self.data += text

    def handle_endtag(self, tag: str) -> None:
        self._into = ""


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("page")
    return page_runs.run(base / "a run"), page_runs.data_root(base / "data")


@pytest.fixture(scope="module")
def text(made_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return document.render([made_run[0]], data_root=made_run[1])


@pytest.fixture(scope="module")
def found(text: str) -> Found:
    return Found(text)


def test_nothing_is_fetched_and_nothing_runs_but_what_is_hashed(found: Found) -> None:
    assert found.fetched == []
    assert found.handlers == []
    assert found.policy.startswith("default-src 'none';")
    assert "unsafe" not in re.sub(r"style-src-attr 'unsafe-inline'", "", found.policy)
    assert len(found.scripts) == 2
    for script in found.scripts:
        digest = base64.b64encode(sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in found.policy


def test_plotly_is_there_once(text: str) -> None:
    assert text.count("* plotly.js v") == 1


def test_what_comes_from_records_is_text(text: str, found: Found) -> None:
    markup = text.replace(found.data, "").replace(found.scripts[0], "")
    assert "window.hacked" not in markup
    assert "<" not in found.data
    shown = json.loads(found.data)["browsers"][0]["samples"]
    assert page_runs.HOSTILE in [each["question"] for each in shown]


def test_hostile_methods_and_environments_are_text(tmp_path: Path) -> None:
    bad = '"><script>alert(1)</script>'
    row = make_record("none", None, "pope", 50.0)
    fields = {name: getattr(row, name) for name in record.Record.__dataclass_fields__}
    cell = {**row.cell, "params": {"x": bad}}
    write_run(
        tmp_path, [record.Record(**{**fields, "cell": cell, "environment": {"cpu": bad}, "versions": {bad: bad}})]
    )
    html = document.render([tmp_path])
    assert bad not in html
    assert "&lt;script&gt;alert(1)" in html


def test_samples_hold_what_was_asked_answered_and_kept(found: Found) -> None:
    (browser,) = json.loads(found.data)["browsers"]
    assert browser["rows"] == ["none", "grid @ 16", "holov @ 16"]
    by_doc = {each["doc"]: each for each in browser["samples"]}
    assert sorted(by_doc) == [0, 1, 2, 3, 4]
    first = by_doc[0]
    assert (first["question"], first["truth"], first["task"]) == ("Is there a circle?", "yes", "POPE")
    assert [answer[:2] for answer in first["rows"]] == [["yes", 1], ["yes", 1], ["no", 0]]
    assert [answer[2] for answer in first["rows"]] == [
        pack_indices(indices, 144) for indices in (range(144), range(0, 32, 2), range(0, 24, 2))
    ]
    assert [answer[3:] for answer in first["rows"]] == [[144, 0], [16, 0], [16, 4]], (
        "holov's four zero rows are counted"
    )
    assert all(uri.startswith("data:image/webp;base64,") for uri in browser["images"])


def test_an_image_that_is_not_the_one_answered_is_not_shown(made_run: tuple[Path, Path], tmp_path: Path) -> None:
    other = page_runs.data_root(tmp_path)
    path = next(other.rglob("*.parquet"))
    rows = pq.read_table(path).to_pylist()
    rows[3]["image"]["bytes"] = page_runs.image_of(5)
    pq.write_table(pa.Table.from_pylist(rows), path)
    comparison = runs.comparisons([runs.load(made_run[0])])[0]
    shown = samples.browser(comparison, other, 1e6)
    assert sorted(each["doc"] for each in shown.samples) == [0, 1, 2, 4]
    assert "1 were skipped" in shown.note


@pytest.mark.parametrize(
    ("task", "scores", "points"),
    [
        ("gqa", {"exact_match": 1.0}, 1),
        ("vqav2", {"exact_match": 0.3}, 0.3),
        ("pope", {"pope_f1_score": {"prediction": "no", "ground_truth": "no", "score": 0}}, 1),
        ("seedbench", {"seed_image": {"pred": "A", "answer": "a"}}, 1),
        ("mmbench_en", {"gpt_eval_score": {"hit": 0, "prediction": "A", "answer": "A"}}, 0),
        ("mme", {"mme_total_score": {"score": 1.0, "category": "count"}}, 1),
        ("mme", {}, None),
    ],
)
def test_points_of_one_sample(task: str, scores: dict[str, Any], points: float | None) -> None:
    assert answers.points(task, scores) == points


def test_packed_answers_show_what_the_journals_show(made_run: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(made_run[0], tmp_path / "a clone")
    packed_answers.pack(folder)
    shutil.rmtree(folder / "samples")
    shown, again = (
        samples.browser(runs.comparisons([runs.load(each)])[0], made_run[1], 1e6) for each in (made_run[0], folder)
    )
    assert shown == again
    assert len(again.samples) == 5
    assert again.note == "5 of 85 samples."


@pytest.mark.parametrize(
    ("cell", "fit"),
    [
        ({"backbone": "llava-1.5", "image_aspect": "pad"}, "pad"),
        ({"backbone": "llava-1.5", "image_aspect": "crop"}, "centre"),
        ({"backbone": "toy-llava", "image_aspect": "pad"}, "pad"),
        ({"backbone": "llava-next", "image_aspect": None}, "stretch"),
        ({"backbone": "qwen2.5-vl", "image_aspect": None}, "whole"),
    ],
)
def test_patches_lie_on_the_image_as_the_tower_read_it(cell: dict[str, Any], fit: str) -> None:
    """A wide image, blue with a red left third: its height, and the colours in the middle column and the left one."""
    image, stream = Image.new("RGB", (300, 100), "blue"), io.BytesIO()
    image.paste("red", (0, 0, 100, 100))
    image.save(stream, "PNG")
    assert thumbnails.fit(cell) == fit
    uri = thumbnails.thumbnail(stream.getvalue(), fit)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as opened:
        shown = opened.convert("RGB")
    size, left, top = {
        "pad": ((160, 160), "red", "grey"),
        "centre": ((100, 100), "blue", "blue"),
        "stretch": ((160, 160), "red", "blue"),
        "whole": ((160, 53), "red", "blue"),
    }[fit]
    assert shown.size == size
    assert name_colour(shown.getpixel((4, shown.height // 2))) == left
    assert name_colour(shown.getpixel((shown.width // 2 + 20, 4))) == top


def name_colour(pixel: Any) -> str:
    red, _, blue = pixel
    return "grey" if abs(red - blue) < 40 else "red" if red > blue else "blue"


def test_no_data_and_no_journals_are_a_sentence_each(made_run: tuple[Path, Path], tmp_path: Path) -> None:
    html = document.render([made_run[0]], data_root=tmp_path)
    assert "0 of 85 samples. Not shown: task pope: no file matches" in unescape(html)
    bare = write_run(tmp_path / "bare", [make_record("none", None, "pope", 80.0)])
    assert "No samples: the run folder has neither journals (samples/) nor answers.parquet;" in document.render([bare])


def test_the_budget_holds_and_samples_are_left_out_first(made_run: tuple[Path, Path], text: str) -> None:
    folder, root = made_run
    bare = len(document.render([folder], data_root=root / "nowhere").encode())
    tight = document.render([folder], data_root=root, max_mb=(bare + 1200) / document.MB / 0.97)
    (browser,) = json.loads(Found(tight).data)["browsers"]
    assert 0 < len(browser["samples"]) < 5
    assert len(tight.encode()) <= bare + 1200 + 0.03 * bare
    with pytest.raises(ConfigError, match=r"--max-mb 1: the page takes \d\.\d MB without any sample; give \d"):
        document.render([folder], data_root=root, max_mb=1)


def test_a_page_of_profiles_alone(tmp_path: Path) -> None:
    for each in (make_profile("none", "all", (8,)), make_profile("grid", "16", (2,))):
        record.append(tmp_path / "profile.jsonl", each)
    html = unescape(document.render([tmp_path]))
    assert "grid @ 16 is the fastest to the first token, 2.0 ms against 8.0 ms unpruned (4.00 times as fast" in html
    assert "plotly.js v" not in html


def test_the_page_is_made_without_torch(made_run: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom dpbench.report.html import document\n"
        f"document.render([Path({str(made_run[0])!r})], data_root=Path({str(made_run[1])!r}))\n"
        "print({'torch', 'transformers', 'lmms_eval', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_samples_come_from_all_over_the_data_whatever_the_budget(made_run: tuple[Path, Path]) -> None:
    comparison = runs.comparisons([runs.load(made_run[0])])[0]
    sizes = [len(samples.browser(comparison, made_run[1], budget).samples) for budget in (500, 1500, 2500, 1e6)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 5
    few = samples.browser(comparison, made_run[1], 2500).samples
    assert {each["doc"] // 2 for each in few} == {0, 1, 2}  # the row groups
