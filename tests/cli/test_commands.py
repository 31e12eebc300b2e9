"""The command line: help, mistakes in one sentence with exit code 2, and a frozen list of commands and options."""

import sys
from pathlib import Path

import pytest
import typer
from places import TOY_DATA

from dpbench import __version__
from dpbench.cli import commands

CELL_FLAGS = {
    "--method", "--methods", "--param", "--backbone", "--weights", "--revision", "--quantize", "--device-map", "--keep",
    "--prune-rate", "--budget-kind", "--device", "--dtype", "--attention", "--prompt", "--anyres", "--newline",
    "--min-pixels", "--max-pixels", "--image-aspect", "--grids", "--protocol", "--out",
}  # fmt: skip
PROBE_FLAGS = {
    "--backbone", "--checkpoints", "--classifier", "--data", "--device", "--keep", "--out", "--param", "--seed",
    "--tau", "--weights",
}  # fmt: skip
COMMANDS = {
    "run": CELL_FLAGS | {
        "--tasks", "--limit", "--ocr", "--wording", "--reading", "--batch-size", "--feature-cache", "--num-shards",
        "--shard", "--data-root", "--dry-run", "--no-wait",
    },
    "plan": (CELL_FLAGS - {"--method", "--methods", "--param", "--keep", "--prune-rate", "--budget-kind"}) | {
        "--tasks", "--limit", "--ocr", "--wording", "--reading", "--batch-size", "--data-root", "--measure",
    },
    "merge": {"--data-root"},
    "train": {
        "--backbone", "--variant", "--keep", "--data", "--out", "--steps", "--batch-size", "--seed", "--weights",
        "--revision", "--dtype", "--image-aspect", "--device", "--param", "--resume",
    },
    "profile": CELL_FLAGS | {
        "--batch-size", "--image-size", "--text-tokens", "--repetitions", "--seconds", "--warmups", "--answers",
        "--compile", "--cuda-graph", "--sweep", "--flops-only", "--verify",
    },
    "report": {
        "--run", "--table", "--format", "--out", "--compare", "--paper", "--diff", "--subset", "--figures", "--bundle",
        "--max-mb", "--data-root", "--full",
    },
    "visualize": {
        "--manifest",
        "--question", "--backbone", "--weights", "--revision", "--method", "--methods", "--keep", "--prune-rate",
        "--device",
        "--dtype", "--image-aspect", "--out", "--show",
    },
    "doctor": {"--data-root"},
    "check": {"--param", "--backbone", "--goldens"},
    "list methods": {"--cited"},
    "list backbones": set(),
    "list tasks": {"--data-root", "--reading"},
    "list manifests": set(),
    "data pull": {"--to", "--revision"},
    "data verify": {"--data-root", "--revision", "--quick"},
    "probe coherence": PROBE_FLAGS | {"--variant"},
    "probe landscape": PROBE_FLAGS | {"--variant"},
    "probe noise": PROBE_FLAGS,
    "toy build": {"--out", "--seed", "--scale", "--device", "--compile"},
    "toy data": {"--out", "--seed"},
    "toy bars": {"--run", "--device"},
}  # fmt: skip


def dpbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Run a command as a shell would and return its exit code and everything it printed."""
    monkeypatch.setattr(sys, "argv", ["dpbench", *arguments])
    with pytest.raises(SystemExit) as done:
        commands.main()
    printed = capsys.readouterr()
    return int(done.value.code or 0), printed.out + printed.err


def test_commands_and_options_are_the_frozen_ones() -> None:
    found = {}
    root = typer.main.get_command(commands.app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", {"": command})
        for part, leaf in parts.items():
            options = {flag for option in leaf.params for flag in option.opts if flag.startswith("--")}
            found[f"{name} {part}".strip()] = options
    assert found == COMMANDS


def test_version_and_hidden_spellings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert dpbench(capsys, monkeypatch, "--version") == (0, f"dpbench {__version__}\n")
    assert dpbench(capsys, monkeypatch, "report", "--help")[1].count("--run") == 0
    assert dpbench(capsys, monkeypatch, "toy", "bars", "--help")[1].count("--run") == 0


@pytest.mark.parametrize("command", ["run", "profile"])
def test_help_is_grouped_with_an_example_and_fits_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed = dpbench(capsys, monkeypatch, command, "--help")
    assert code == 0
    heads = [line.split("─ ")[1].split(" ─")[0] for line in printed.splitlines() if line.startswith("╭─ ")]
    measured = ["Measurement"] if command == "profile" else []
    assert heads == ["Arguments", "Options", "What to run", "Budget", "Machine", "Protocol", *measured, "Output"]
    assert f"Example: dpbench {command} " in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


@pytest.mark.parametrize("what", ["methods", "backbones", "tasks", "manifests"])
def test_lists_fit_80_columns(what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed = dpbench(capsys, monkeypatch, "list", what)
    assert code == 0
    assert max(len(line) for line in printed.splitlines()) <= 80
    if what in ("backbones", "tasks"):
        assert "toy-llava brings its own weights and benchmark data" in printed
        assert f"dpbench list {what} NAME" in printed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("methods", "holov"), "num_crops: strips per image."),
        (("backbones", "llava-1.5"), "llava-hf/llava-1.5-7b-hf"),
        (("tasks", "mme"), "perception + cognition, as LLaVA-1.5's 1862"),
        (("manifests", "toy-full"), "dpbench run toy-full --dry-run"),
    ],
)
def test_a_name_is_listed_in_full(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, printed = dpbench(capsys, monkeypatch, "list", *arguments)
    assert code == 0
    assert text in " ".join(printed.split())


CELL = ("run", "--backbone", "toy-llava", "--keep", "16", "--tasks", "pope")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--method", "holow", "--backbone", "toy-llava", "--keep", "16"), "there is no method 'holow'"),
        ((*CELL, "--method", "cls-attentoin"), "did you mean 'cls-attention'"),
        ((*CELL, "--method", "grid", "--param", "position=original"), "did you mean 'positions'"),
        ((*CELL, "--method", "grid", "--param", "positions"), "name=value"),
        ((*CELL, "--method", "grid", "--prune-rate", "0.5"), "--keep and --prune-rate both"),
        (("run", "--method", "grid", "--backbone", "toy-lava", "--keep", "16"), "did you mean 'toy-llava'"),
        (("run", "--method", "grid", "--backbone", "toy-llava"), "needs a budget"),
        (("run", "--method", "grid", "--keep", "16"), "--backbone is missing"),
        (("run",), "--method is missing"),
        (("run", "--method", "grid", "--backbone", "toy-llava", "--keep", "500"), "more than the 144 visual tokens"),
        (("run", "--method", "grid", "--backbone", "toy-llava", "--keep", "0"), "--keep: must be at least 1, got 0"),
        ((*CELL, "--method", "grid", "--param", "positions=["), "not YAML"),
        (("run", "--backbone", "toy-llava", "--method", "none", "--keep", "16"), "none keeps every visual token"),
        (("toy", "bars"), "there is no folder results/toy-full; name a run folder"),
        (("run", "quickstrt"), "did you mean 'quickstart'"),
        (("run", "quickstart", "--param", "layer=3"), "set it in quickstart, under methods"),
        (("run", "quickstart", "--methods", "none", "--keep", "8"), "none keeps every visual token; drop --keep"),
        (("run", "quickstart", "--methods", "holow"), "did you mean 'holov'"),
        (("run", "quickstart", "--keep", "8", "--prune-rate", "0.5"), "--keep and --prune-rate both"),
        (("run", "quickstart", "--keep", "x"), "'x' is not a whole number"),
        (("list", "tasks", "pop"), "did you mean 'pope'"),
        (("list", "manifests", "quickstrt"), "did you mean 'quickstart'"),
        (("run", "quickstart", "--tasks", "pop"), "did you mean 'pope'"),
        (("run", "quickstart", "--batch-size", "many"), "--batch-size: must be auto"),
        (("run", "quickstart", "--data-root", "nowhere"), "there is no folder nowhere"),
        (("data", "pull", "pop"), "did you mean 'pope'"),
        (("data", "pull", "pope", "--revision", "v1"), "--revision needs --to DIR"),
        (("data", "verify", "pop"), "did you mean 'pope'"),
        (("data", "verify", "--data-root", "nowhere"), "there is no folder nowhere"),
        (("report",), "there are no records"),
        (("report", "--run", "nowhere"), "there is no folder nowhere; name a run folder"),
        (("report", "--format", "word"), "word"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_with_two(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = dpbench(capsys, monkeypatch, *arguments)
    assert code == 2
    assert message in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


def test_a_cell_runs_from_any_folder_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = f"name: cell\nbackbone: {{name: toy-llava, weights: {tiny_folder}}}\nmethods: [none, grid]\n"
    Path("cell.yaml").write_text(text + "budgets: {keep: [16]}\ntasks: [pope]\nprotocol: {limit: 4}\n")
    code, printed = dpbench(capsys, monkeypatch, "run", "cell.yaml", "--dry-run", "--data-root", str(TOY_DATA))
    assert (code, "2 cells to run, 0 done" in printed) == (0, True)
    assert not Path("results").exists()
    code, printed = dpbench(capsys, monkeypatch, "run", "cell.yaml", "--data-root", str(TOY_DATA))
    assert (code, "2 records added" in printed) == (0, True)
    code, printed = dpbench(capsys, monkeypatch, "run", "cell.yaml", "--data-root", str(TOY_DATA))
    assert (code, "0 cells to run" in printed) == (0, True)
    code, printed = dpbench(capsys, monkeypatch, "report")
    assert "| grid " in printed
    code, printed = dpbench(capsys, monkeypatch, "report", "--format", "csv")
    assert "Method,Budget,Location,Tokens,Over budget,POPE,Retention" in printed
    code, printed = dpbench(capsys, monkeypatch, "profile", "cell.yaml", "--repetitions", "2", "--seconds", "0")
    assert (code, "Prefill (ms)" in printed) == (0, True)


def test_the_toy_data_root_can_be_written_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpbench.toy import mirror

    monkeypatch.setattr(mirror, "tables", lambda seed: {"POPE/data/test": [{"question": "?", "answer": "no"}]})
    code, printed = dpbench(capsys, monkeypatch, "toy", "data", "--out", str(tmp_path / "root"))
    assert code == 0
    assert Path(printed.strip()).is_file()
