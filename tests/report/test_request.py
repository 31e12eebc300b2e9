"""`dpbench report`: committed records give the committed text, and whatever cannot be reported is one sentence."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import page_runs
import pytest
from made_records import make_answer, make_profile, make_record, write_run

from dpbench.cli import commands
from dpbench.errors import ConfigError, RecordError
from dpbench.report import request, runs
from dpbench.report.request import Request
from dpbench.report.tables import published
from dpbench.storage import files, record

HERE = Path(__file__).parent


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    for name in ("records.jsonl", "profile.jsonl"):
        shutil.copy(HERE / name, tmp_path)
    return tmp_path


@pytest.fixture
def page_run(tmp_path: Path) -> Path:
    """A run with journals, which has intervals and figures."""
    return page_runs.run(tmp_path)


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run `dpbench report` and return its exit code, what it printed and what it complained of."""
    monkeypatch.setattr(sys, "argv", ["dpbench", "report", *arguments])
    with pytest.raises(SystemExit) as done:
        commands.main()
    printed = capsys.readouterr()
    return int(done.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "json"])
def test_committed_records_give_the_committed_text(form: str, golden: Path) -> None:
    ending = {"markdown": "md", "latex": "tex"}.get(form, form)
    wanted = (HERE / f"report.{ending}").read_bytes()
    assert (request.report(Request(folders=(golden,), form=form)) + "\n").encode() == wanted


def test_json_is_one_object_a_table_without_what_was_not_measured(golden: Path) -> None:
    found = json.loads(request.report(Request(folders=(golden,), form="json")))
    assert [set(each) for each in found] == [{"name", "heading", "rows", "notes"}] * 3
    assert not any(value is None for each in found for row in each["rows"] for value in row.values())
    assert "POPE" not in found[0]["rows"][-1]


@pytest.mark.parametrize(("table", "number"), [(1, 1), (4, 2)])
def test_one_table_can_be_asked_for(table: int, number: int, golden: Path) -> None:
    assert len(json.loads(request.report(Request(folders=(golden,), form="json", table=table)))) == number


@pytest.mark.parametrize("table", [2, 3, 5])
def test_a_table_that_is_not_there_is_one_sentence(table: int, golden: Path) -> None:
    with pytest.raises(ConfigError, match=f"have nothing for Table {table}"):
        request.report(Request(folders=(golden,), table=table))


def test_the_option_of_old_still_names_a_run(
    golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = call(str(golden), monkeypatch=monkeypatch, capsys=capsys)
    second = call("--run", str(golden), monkeypatch=monkeypatch, capsys=capsys)
    assert first == second
    assert first[0] == 0


def test_a_file_gets_what_the_terminal_would(
    golden: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = golden / "tables.tex"
    latex = ("--format", "latex", "--out", str(out))
    code, printed, note = call(str(golden), *latex, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, printed, note) == (0, "", f"{out}: written\n")
    assert out.read_bytes() == (HERE / "report.tex").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "there is no folder nowhere; name a run folder"),
        (("..",), ".. has neither records.jsonl nor profile.jsonl"),
        (("RUN", "--diff"), "--diff compares two runs, got 1"),
        (("RUN", "RUN", "--diff", "--bundle", "x.zip"), "--diff and --bundle are two reports"),
        (("RUN", "--paper"), "--paper prints the paper's tables alone"),
        (("--paper", "--format", "html"), "--paper has no page"),
        (("RUN", "--out", "records.jsonl/tables.md"), "--out: records.jsonl/tables.md cannot be written"),
        (("RUN", "--subset", "hard"), "no cell of method downsample"),
        (("RUN", "RUN", "--bundle", "x.zip"), "two of the run folders are called"),
        (("RUN", "--bundle", "records.jsonl/x.zip"), "--bundle: records.jsonl/x.zip cannot be written"),
        (("--paper", "--compare", "paper"), "--compare has no effect on --paper"),
        (("RUN", "RUN", "--diff", "--table", "1"), "--table has no effect on --diff"),
        (("RUN", "--format", "html", "--subset", "hard"), "--subset has no effect on --format html"),
        (("RUN", "--bundle", "x.zip", "--out", "y.md"), "--bundle names its own file"),
        (("RUN", "--table", "6"), "6"),
        (("RUN", "--format", "word"), "word"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_with_two(
    arguments: tuple[str, ...],
    message: str,
    golden: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(golden)
    monkeypatch.setattr(request, "_page", lambda *_: "")
    given = [str(golden) if each == "RUN" else each for each in arguments]
    code, _, complaint = call(*given, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert message in " ".join(complaint.split())
    assert "Traceback" not in complaint


def test_a_folder_near_a_run_or_above_it_is_told_the_run(tmp_path: Path) -> None:
    (tmp_path / "toy-full").mkdir()
    (tmp_path / "toy-full" / "records.jsonl").touch()
    (tmp_path / "toy-fulls").mkdir()
    with pytest.raises(
        ConfigError, match=f"there is no folder {tmp_path}/toy-ful; did you mean {tmp_path}/toy-full\\?"
    ):
        runs.load(tmp_path / "toy-ful")
    with pytest.raises(ConfigError, match=f"nor probes.jsonl; name one of its runs: {tmp_path}/toy-full$"):
        runs.load(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this line is not JSON"),
        ('{"schema": 1}', "schema 1, this dpbench reads 2"),
        ('{"schema": 2, "cell_id": "x"}', "are missing or unknown"),
    ],
)
@pytest.mark.parametrize("name", ["records.jsonl", "profile.jsonl"])
def test_corrupt_and_foreign_records_are_one_sentence_and_no_table(
    line: str, message: str, name: str, golden: Path
) -> None:
    with (golden / name).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(RecordError, match=rf"{name}:\d+: .*{message}"):
        request.report(Request(folders=(golden,)))


def test_mixed_environments_are_shown_apart_with_a_sentence(tmp_path: Path) -> None:
    for cpu, times in (("one", [8.0]), ("two", [1.0])):
        environment = {"device": "cpu", "cpu": cpu, "dtype": "float32"}
        for each in (
            make_profile("none", "all", times, environment=environment),
            make_profile("grid", "16", times, environment=environment),
        ):
            record.append(tmp_path / "profile.jsonl", each)
    text = request.report(Request(folders=(tmp_path,)))
    assert text.count("###") == 2
    assert text.count("1.00x") == 4  # nothing of one machine is divided by the other's
    assert "- Shown apart from eager, one: cpu is two, there one." in text


def test_the_paper_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = call("--paper", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0
    assert printed.count("### Table") == 5
    assert printed.splitlines()[-1] == published.verdict()
    assert "36 of 36 averages agree" in printed


def test_the_paper_beside_ours(golden: Path) -> None:
    text = request.report(Request(folders=(golden,), compare=True))
    assert "Table 1 of the paper beside ours" in text
    assert text.count("Table 4 of the paper beside ours") == 2  # one per set of conditions


def test_what_records_say_stays_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [make_record("none", None, "pope", 50.0, params={"name": "a|b*c*<i>_x_ $1% & #"})])
    markdown = request.report(Request(folders=(folder,)))
    assert r"none (name=a\|b\*c\*\<i>" in markdown
    latex = request.report(Request(folders=(folder,), form="latex"))
    assert r"a|b*c*\textless{}i\textgreater{}\_x\_ \$1\% \& \#" in latex


def test_latex_tables_are_whole() -> None:
    text = (HERE / "report.tex").read_text(encoding="utf-8")
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 3
    for columns, body in re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        assert [body.count(rule) for rule in ("\\toprule", "\\bottomrule")] == [1, 1]
        lines = [line for line in body.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
        assert "\\midrule\n\\midrule" not in body
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")


ENGINE = next((name for name in ("tectonic", "pdflatex", "lualatex", "xelatex") if shutil.which(name)), None)


@pytest.mark.skipif(ENGINE is None, reason="no LaTeX engine here; the tables' structure is tested above")
def test_latex_tables_compile(tmp_path: Path) -> None:
    body = (HERE / "report.tex").read_text(encoding="utf-8")
    document = f"\\documentclass{{article}}\\usepackage{{booktabs,xcolor}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    assert ENGINE is not None
    flags = [] if ENGINE == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    subprocess.run([ENGINE, *flags, "all.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_a_report_loads_no_torch_scipy_or_matplotlib(golden: Path) -> None:
    code = (
        "import sys\nfrom dpbench.cli import commands\nsys.argv = ['dpbench', 'report', sys.argv[1]]\n"
        "try:\n    commands.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'lmms_eval', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(golden)], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


BLOCKED = ["--out {}/tables.md", "--figures {}/figures", "--bundle {}/run.zip"]


@pytest.mark.parametrize("flags", BLOCKED)
@pytest.mark.parametrize("place", ["records.jsonl", "/proc/dpbench"])
def test_a_place_that_cannot_be_made_is_one_sentence(
    flags: str, place: str, page_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(page_run)
    monkeypatch.setattr(request, "_page", lambda *_: "")
    flag, path = flags.format(place).split()
    code, _, complaint = call(".", flag, path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert re.fullmatch(rf"ConfigError: {flag}: {path}\S* cannot be written \(.*\); give another path\n", complaint)


@pytest.mark.parametrize("flags", BLOCKED)
def test_a_read_only_disk_is_one_sentence(
    flags: str, page_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, _data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(request, "_page", lambda *_: "")
    monkeypatch.setattr(files, "replace", refuse)
    flag, path = flags.format(page_run / "disk").split()
    code, _, complaint = call(str(page_run), flag, path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert f"{flag}: {path}" in complaint
    assert "cannot be written (Read-only file system); give another path" in complaint
    assert "Traceback" not in complaint


def test_intervals_that_cannot_be_cached_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [make_record("none", None, "gqa", 100.0), make_record("grid", 16, "gqa", 50.0)]
    hits = {rows[0].cell_id: (1.0, 1.0), rows[1].cell_id: (1.0, 0.0)}
    journals = {
        name: [make_answer("gqa", at, f"image {at}", {"exact_match": hit}) for at, hit in enumerate(row)]
        for name, row in hits.items()
    }
    write_run(tmp_path, rows, journals)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "records.jsonl"))
    request.report(Request(folders=(tmp_path,)))
    assert "intervals are not cached" in caplog.text
