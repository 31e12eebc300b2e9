"""Whatever is wrong with what a command is given: exit code 2, one sentence that says what, no traceback, no file.

`{s}` is the folder of bad files. What the option parser refuses comes with a usage line, everything else is one line.
"""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bad_files
import pytest
import torch
from PIL import Image
from places import TOY_DATA

from dpbench.cli import commands

GRID = "run --backbone toy-llava --tasks pope --method grid"
FASTV = "run --backbone toy-llava --tasks pope --keep 16 --method fastv"
SCORER = "run --backbone toy-llava --tasks pope --keep 16 --method diffprune --param checkpoint="
DRAW = "visualize {s}/images/plain.png --method grid"
TRAIN = "train --backbone toy-llava"

MANIFESTS = {
    "nothere": "there is no manifest {s}/nothere.yaml",
    "a_file/x": "there is no manifest",
    "folder": "is a folder, not a manifest",
    "empty": "empty.yaml: a manifest is a mapping with name, backbone, methods, ..., found nothing",
    "comment": "found nothing",
    "list": "found list",
    "scalar": "found str",
    "binary": "binary.yaml is not a manifest: byte 128 is not UTF-8 text",
    "utf16": "is not UTF-8 text; save it as UTF-8",
    "nul": "unacceptable character",
    "huge": "at most 1,048,576 are read",
    "indent": "indent.yaml:5: not YAML",
    "tab": "tab.yaml:3: not YAML",
    "bomb": "bomb.yaml:5: aliases and values make more than 100,000",
    "cycle": "cycle.yaml:2: aliases and values make more than",
    "deep": "nested too deeply",
    "object": "object.yaml:1: not YAML: could not determine a constructor",
    "date": "month must be in 1..12",
    "alias": "undefined alias 'nobody'",
    "key": "key.yaml:6: taks: unknown key 'taks'; did you mean 'tasks'?",
    "inner_key": "inner_key.yaml:6: protocol.promt: unknown key 'promt'; did you mean 'prompt'?",
    "number_key": "number_key.yaml:6: the key 1 is not text; put it in quotes",
    "twice": "twice.yaml:6: tasks: this key is there twice",
    "inner_twice": "inner_twice.yaml:3: a: this key is there twice",
    "no_name": "name: it is missing; add it",
    "keep_0": "keep_0.yaml:4: budgets.keep.0: must be at least 1, got 0",
    "keep_negative": "budgets.keep.0: must be at least 1, got -3",
    "keep_float": "budgets.keep.0: Input should be a valid integer, got 1.5",
    "keep_bool": "budgets.keep.0: Input should be a valid integer, got True",
    "keep_above": "keep_above.yaml:4: budgets.keep: 145 is more than the 144 visual tokens of toy-llava",
    "rate_1": "rate_1.yaml:4: budgets.prune_rate.0: must be at least 0 and below 1, got 1.0",
    "rate_nan": "budgets.prune_rate.0: must be at least 0 and below 1, got nan",
    "both": "both.yaml:4: budgets: give either keep (counts) or prune_rate (shares removed)",
    "neither": "neither.yaml:4: budgets: give either keep",
    "outside": "outside.yaml:1: name: String should match pattern",
    "absolute": "absolute.yaml:1: name: String should match pattern",
    "method": "method.yaml:3: methods.1.name: there is no method 'gird'; did you mean 'grid'?",
    "task": "task.yaml:5: tasks.0: there is no task 'pop'; did you mean 'pope'?",
    "backbone": "backbone.yaml:2: backbone.name: there is no backbone 'toy-lava'; did you mean 'toy-llava'?",
    "param": "method 'grid' has no parameter 'position'; did you mean 'positions'?",
    "param_list": "param_list.yaml:3: methods.1.params: Input should be a valid dictionary",
    "batch": "batch.yaml:6: protocol.batch_size: must be auto or a whole number, at least 1, got 0",
}

LINES = {
    # run: budgets
    f"{GRID} --keep -4": "--keep: must be at least 1, got -4",
    f"{GRID} --keep abc": "--keep: 'abc' is not a whole number",
    f"{GRID} --keep 1.5": "--keep: '1.5' is not a whole number",
    f"{GRID} --prune-rate abc": "--prune-rate: 'abc' is not a number",
    f"{GRID} --keep 16 --limit 0": "--limit: Input should be greater than or equal to 1, got 0",
    f"{GRID} --keep 0": "--keep: must be at least 1, got 0",
    f"{GRID} --keep 145": "145 is more than the 144 visual tokens",
    f"{GRID} --keep 99999999999999999999999": "is more than the 144 visual tokens",
    f"{GRID} --prune-rate 1": "--prune-rate: must be at least 0 and below 1, got 1.0",
    f"{GRID} --prune-rate 1.5": "--prune-rate: must be at least 0 and below 1, got 1.5",
    f"{GRID} --prune-rate -0.5": "--prune-rate: must be at least 0 and below 1, got -0.5",
    f"{GRID} --prune-rate nan": "--prune-rate: must be at least 0 and below 1, got nan",
    f"{GRID} --keep 16 --prune-rate 0.5": "--keep and --prune-rate both set the budget; give one of them",
    GRID: "--method grid needs a budget; give --keep K or --prune-rate R",
    # run: names and parameters
    "run --method gird --backbone toy-llava --keep 16": "there is no method 'gird'; did you mean 'grid'?",
    "run --method grid --backbone toy-lava --keep 16": "--backbone: there is no backbone 'toy-lava'",
    "run --method grid --backbone toy-llava --keep 16 --tasks pop": "--tasks: there is no task 'pop'; did you mean",
    "run --method grid --backbone toy-llava --keep 16 --tasks ,": "tasks: List should have at least 1 item",
    f"{FASTV} --param layr=3": "method 'fastv' has no parameter 'layr'; did you mean 'layer'?",
    f"{FASTV} --param layer=two": "fastv.layer: Input should be a valid integer",
    f"{FASTV} --param layer=-1": "fastv needs layer >= 1",
    f"{FASTV} --param layer=[": "the value of 'layer' is not YAML",
    f"{FASTV} --param =3": "'=3' is not of the form name=value",
    f"{GRID} --keep 16 --batch-size ²": "--batch-size: must be auto or a whole number, at least 1, got '²'",
    f"{GRID} --keep 16 --feature-cache lots": "--feature-cache: 'lots' is not a size",
    f"{GRID} --keep 16 --num-shards 2": "--num-shards and --shard go together",
    # run: device, weights, data, output
    f"{GRID} --keep 16 --device cuda": "cuda was requested, but torch sees no GPU here; use --device cpu",
    f"{GRID} --keep 16 --weights random": "answers of random weights mean nothing",
    f"{GRID} --keep 16 --weights ./nowhere": "nowhere lacks config.json, tokenizer.json",
    f"{GRID} --keep 16 --weights ''": "lacks config.json",
    f"{GRID} --keep 16 --weights nobody/nothing": "fetch them with: hf download nobody/nothing",
    f"{GRID} --keep 16 --weights {{s}}/a_file": "a_file lacks config.json",
    f"{GRID} --keep 16 --weights {{s}}/weights/cut": "weights/cut/model.safetensors is damaged",
    f"{GRID} --keep 16 --weights {{s}}/weights/noise": "weights/noise/model.safetensors is damaged",
    f"{GRID} --keep 16 --weights {{s}}/weights/config": "weights/config/config.json is damaged",
    f"{GRID} --keep 16 --weights {{s}}/weights/tokenizer": "weights/tokenizer/tokenizer.json is damaged",
    f"{GRID} --keep 16 --weights {{s}}/weights/index": "lacks a whole model.safetensors.index.json",
    f"{GRID} --keep 16 --data-root {{s}}/a_file": "--data-root: there is no folder {s}/a_file",
    f"{GRID} --keep 16 --data-root {{s}}": "no file matches {s}/POPE/data/test-*.parquet",
    f"{GRID} --keep 16 --data-root {{s}}/root": "test-00000-of-00001.parquet is truncated or not a parquet file",
    "run {s}/good.yaml --out {s}/a_file": "--out: cannot write to {s}/a_file/m (Not a directory)",
    "run {s}/good.yaml --out {s}/out": "records.jsonl:1: this line is not a record but a list",
    f"{SCORER}{{s}}/scorers/noise": "scorer.safetensors is not the file that card.json describes",
    f"{SCORER}{{s}}/scorers/other": "this scorer was trained for llava-1.5, not for toy-llava",
    f"{SCORER}{{s}}/scorers/card": "card.json is not a scorer's card",
    f"{SCORER}{{s}}/nothere": "lacks scorer.safetensors and card.json",
    f"{SCORER}{{s}}/a_file": "lacks scorer.safetensors and card.json",
    f"{SCORER}3": "diffprune.checkpoint: Input should be a valid string, got 3",
    # train
    "train --backbone toy-lava": "there is no backbone 'toy-lava'; did you mean 'toy-llava'?",
    "train --backbone llava-1.5": "--data: llava-1.5 needs image-caption pairs to train on",
    f"{TRAIN} --keep abc": "--keep: 'abc' is not a budget",
    f"{TRAIN} --keep 0": "--keep: '0' is not a budget",
    f"{TRAIN} --keep 1.5": "--keep: '1.5' is not a budget",
    f"{TRAIN} --keep 500": "--keep: 500 is more than the 144 visual tokens of toy-llava",
    f"{TRAIN} --steps 0": "--param steps: Input should be greater than or equal to 1, got 0",
    f"{TRAIN} --param lrr=1": "training has no setting 'lrr'; did you mean 'lr'?",
    f"{TRAIN} --param lr=abc": "--param lr: Input should be a valid number",
    f"{TRAIN} --param heads=5": "--param heads: hidden must be a multiple of heads, got 96 and 5",
    f"{TRAIN} --data nowhere": "--data nowhere: there is no such file or folder",
    f"{TRAIN} --data {{s}}/images": "the folder has no *.parquet, *.jsonl or *.tar file",
    f"{TRAIN} --data {{s}}/line.jsonl": "line.jsonl line 1 is not JSON",
    f"{TRAIN} --data {{s}}/array.jsonl": "array.jsonl line 1 must be an object, got list",
    f"{TRAIN} --data {{s}}/none.jsonl": "it has no examples",
    f"{TRAIN} --data {{s}}/data.tar": "data.tar is truncated or not a tar file",
    f"{TRAIN} --data {{s}}/data.parquet": "data.parquet is not a complete parquet file",
    f"{TRAIN} --device cuda": "--device cuda: torch sees no GPU here",
    f"{TRAIN} --resume": "--resume: scorers/toy-llava holds no training",
    f"{TRAIN} --out {{s}}/a_file/x": "--out: cannot write to {s}/a_file/x",
    f"{TRAIN} --weights {{s}}/weights/noise": "model.safetensors is damaged",
    # profile
    "profile --keep abc": "--keep: 'abc' is not a whole number",
    "profile --keep 1.5": "--keep: '1.5' is not a whole number",
    "profile --keep 0": "--keep: must be at least 1, got 0",
    "profile --keep 145": "145 is more than the 144 visual tokens",
    "profile --prune-rate abc": "--prune-rate: 'abc' is not a number",
    "profile --prune-rate 1": "--prune-rate: must be at least 0 and below 1, got 1.0",
    "profile --keep 16 --prune-rate 0.5": "give one of them",
    "profile --backbone lava": "there is no backbone 'lava'; did you mean",
    "profile --method gird": "there is no method 'gird'",
    "profile --method grid,none --param positions=original": "--param belongs to one method",
    "profile --image-size ²": "--image-size: '²' is not a size in pixels",
    "profile --batch-size 0": "--batch-size: must be at least 1, got 0",
    "profile --device cuda": "torch sees no GPU here",
    "profile --weights {s}/weights/cut": "model.safetensors is damaged",
    "profile --method none --out {s}/a_file": "--out: cannot write to {s}/a_file",
    # report
    "report": "there are no records under results",
    "report {s}/nothere": "there is no folder {s}/nothere; name a run folder",
    "report {s}/text": "text/records.jsonl:1: this line is not JSON",
    "report {s}/binary": "binary/records.jsonl:1: this line is not JSON",
    "report {s}/list": "list/records.jsonl:1: this line is not a record but a list",
    "report {s}/number": "number/profile.jsonl:1: this line is not a record but a int",
    "report {s}/schema": "schema 1, this dpbench reads 2; move the file away",
    "report {s}/fields": "are missing or unknown",
    "report {s}/types": "types/records.jsonl:1: cell: Input should be a valid dictionary",
    "report {s}/cell": "has no 'anyres'; it is not a record of a finished cell",
    "report {s}/cut": "has neither records.jsonl nor profile.jsonl",
    "report {s}/folder": "folder/records.jsonl is a folder",
    "report --diff {s}/run": "--diff compares two runs, got 1",
    "report {s}/run --out {s}": "--out: {s} cannot be written",
    "report {s}/run --out {s}/a_file/x": "--out: {s}/a_file/x cannot be written ({s}/a_file is a file, not a folder)",
    "report {s}/run --bundle {s}/a_file/x.zip": "cannot be written",
    "report {s}/run --figures {s}/a_file": "--figures: {s}/a_file is a file; give a folder",
    # visualize
    "visualize {s}/images/plain.png --method gird --keep 16": "there is no method 'gird'; did you mean 'grid'?",
    DRAW: "give --keep K or --prune-rate R",
    f"{DRAW} --keep 0": "--keep: must be at least 1, got 0",
    f"{DRAW} --prune-rate nan": "--prune-rate: must be at least 0 and below 1, got nan",
    f"{DRAW} --keep 16 --out x.txt": "--out: x.txt is not the name of a picture",
    f"{DRAW} --keep 16 --out {{s}}/a_file/x.png": "--out: cannot write to {s}/a_file",
    f"{DRAW} --keep 16 --show kpet": "--show: there is no row 'kpet'; did you mean 'kept'?",
    f"{DRAW} --keep 16 --weights {{s}}/weights/cut": "model.safetensors is damaged",
    "visualize {s}/images --method grid --keep 16": "IMAGE: {s}/images is a folder",
    "visualize {s}/nothere.png --method grid --keep 16": "IMAGE: there is no file {s}/nothere.png",
    "visualize {s}/images/cut.png --method grid --keep 16": "cannot be read (",
    "visualize {s}/images/cut.jpg --method grid --keep 16": "cannot be read (image file is truncated",
    "visualize {s}/images/zero.png --method grid --keep 16": "zero.png is empty (0 bytes)",
    "visualize {s}/images/text.png --method grid --keep 16": "text.png is not an image that Pillow can read",
    "visualize {s}/images/bomb.png --method grid --keep 16": "exceeds limit of",
    # check, list, doctor, data, merge, toy
    "check gird": "there is no method 'gird'; did you mean 'grid'?",
    "check grid --param position=original": "did you mean 'positions'?",
    "check grid --backbone lava": "--backbone: there is no 'lava' to check on; did you mean 'llava'?",
    "check grid --goldens {s}/goldens": "{s}/goldens has no file grid_*.npz",
    "list tasks --data-root {s}/nothere": "--data-root: there is no folder {s}/nothere",
    "doctor --data-root {s}/a_file": "--data-root: there is no folder {s}/a_file",
    "data pull pop": "there is no task 'pop'; did you mean 'pope'?",
    "data pull pope --to {s}/a_file/x": "--to: {s}/a_file/x is not a folder",
    "data pull pope --to root": "cannot be fetched from http://127.0.0.1:9",
    "data pull pope --revision v1": "--revision needs --to DIR",
    "data verify pop": "there is no task 'pop'; did you mean 'pope'?",
    "data verify pope --data-root {s}/a_file": "--data-root: there is no folder {s}/a_file",
    "merge {s}/no_manifest": "there is no manifest.yaml, so it is not a run's folder",
    "merge {s}/binary": "is not UTF-8 text",
    "merge {s}/a_file": "there is no manifest.yaml",
    "toy bars --run {s}/list": "this line is not a record but a list",
    "toy bars {s}/nothere": "there is no folder",
    "toy data --out {s}/a_file": "--out: cannot write to {s}/a_file",
    "toy build --out {s}/a_file": "--out: cannot write to {s}/a_file",
    "toy build --device cuda": "torch sees no GPU here",
} | {f"run '{{s}}/{name}.yaml' --dry-run": message for name, message in MANIFESTS.items()}

USAGES = {
    f"{GRID} --limit abc": "Invalid value for '--limit'",
    f"{GRID} --device gpu": "'gpu' is not one of 'auto', 'cpu', 'cuda'",
    f"{GRID} --dtype int8": "'int8' is not one of 'float32', 'bfloat16', 'float16'",
    f"{GRID} --kep 5": "No such option: --kep (Possible options: --help, --keep)",
    "run {s}/good.yaml more": "Got unexpected extra argument(s) (more)",
    "runn": "No such command 'runn'. Did you mean 'run'?",
    "merge": "Missing argument 'run'",
    "train": "Missing option '--backbone'",
    f"{TRAIN} --variant nope": "'nope' is not one of 'diffprune', 'gumbel-ste'",
    "profile --repetitions 0": "Invalid value for '--repetitions'",
    "profile --seconds -1": "Invalid value for '--seconds'",
    "report --format latx": "'latx' is not one of 'markdown', 'latex'",
    "report --table 9": "'9' is not one of '1', '2', '3', '4', '5', 'all'",
    "visualize": "Missing argument 'IMAGE'",
    f"{DRAW} --keep 1.5": "Invalid value for '--keep'",
    "check": "Missing argument 'method'",
    "list methds": "No such command 'methds'. Did you mean 'methods'?",
    "doctor more": "Got unexpected extra argument(s) (more)",
    "toy data --seed -1": "Invalid value for '--seed'",
    "toy build --scale huge": "'huge' is not one of 'small', 'full'",
}

EXECUTABLE = (f"{GRID} --keep 0", "train --backbone toy-lava", "data pull pop")
EXECUTABLE_AT_LENGTH = (
    f"{FASTV} --param layr=3", "run '{s}/bomb.yaml' --dry-run", "run '{s}/twice.yaml' --dry-run", "profile --keep 1.5",
    "report {s}/list", "merge {s}/binary", "visualize {s}/images/bomb.png --method grid --keep 16",
)  # fmt: skip
"""All are said by `main` above; a process for each of these repeats what the first three pin."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_files.shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, without network or GPU; afterwards no file is other than before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPBENCH_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = state(shelf)
    yield tmp_path
    assert state(shelf) == before
    assert not list(tmp_path.iterdir())


def state(folder: Path) -> dict[str, str]:
    """Return every file with its size and time, which reading leaves alone, and the hash of the small ones."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        small = path.is_file() and stat.st_size < 10_000
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else ""
        found[str(path)] = f"{stat.st_size if path.is_file() else ''} {stat.st_mtime_ns} {digest}"
    return found


def words(line: str, shelf: Path) -> list[str]:
    return [part.replace("{s}", str(shelf)) for part in shlex.split(line)]


def sentence(stderr: str) -> str:
    """Return the one line of an error, without its kind."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    kind, _, text = lines[0].partition(": ")
    assert re.fullmatch(r"(Config|Missing|Record|Unsupported|Image)Error", kind), lines[0]
    assert len(text) < 700, f"no sentence has {len(text)} characters"
    return text


@pytest.mark.parametrize("line", LINES)
def test_a_mistake_is_one_sentence_with_exit_code_two_and_changes_no_file(
    line: str, shelf: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dpbench", *words(line, shelf)])
    with pytest.raises(SystemExit) as left:
        commands.main()
    printed = capsys.readouterr()
    assert (left.value.code, printed.out) == (2, "")
    assert LINES[line].replace("{s}", str(shelf)) in sentence(printed.err)


@pytest.mark.parametrize("line", USAGES)
def test_what_the_option_parser_refuses_comes_with_its_reason(
    line: str, shelf: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dpbench", *words(line, shelf)])
    with pytest.raises(SystemExit) as left:
        commands.main()
    printed = capsys.readouterr()
    inside = [row.strip("│ ") for row in printed.err.splitlines() if row.startswith("│")]
    assert (left.value.code, printed.out) == (2, "")
    assert re.match(r"\s*Usage: .*dpbench[ \n]", printed.err)
    assert USAGES[line] in " ".join(inside)


@pytest.mark.parametrize(
    "line", [*EXECUTABLE, *(pytest.param(line, marks=pytest.mark.slow) for line in EXECUTABLE_AT_LENGTH)]
)
def test_the_executable_says_the_same(line: str, shelf: Path, here: Path) -> None:
    command = [str(Path(sys.executable).with_name("dpbench")), *words(line, shelf)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert LINES[line].replace("{s}", str(shelf)) in sentence(done.stderr)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("name", ["good.yaml", "run/records.jsonl"])
def test_a_file_that_may_not_be_read_is_named(
    name: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((shelf / name).read_bytes())
    path.chmod(0)
    command = ["run", str(path)] if path.suffix == ".yaml" else ["report", str(path.parent)]
    monkeypatch.setattr(sys, "argv", ["dpbench", *command])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 2
    assert sentence(capsys.readouterr().err).startswith(f"{path}: Permission denied")


def test_permission_errors_are_sentences_for_root_too(
    shelf: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(sys, "argv", ["dpbench", "run", str(shelf / "good.yaml")])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 2
    assert sentence(capsys.readouterr().err).startswith(f"{shelf}/good.yaml: Permission denied; give another path")


def test_the_table_is_long_enough() -> None:
    assert len(LINES) + len(USAGES) >= 80
    names = {line.split()[0] for line in (*LINES, *USAGES)}
    assert names >= {"run", "train", "profile", "report", "visualize", "check", "list", "data", "doctor", "merge"}
    assert set(EXECUTABLE) <= set(LINES)


def test_unicode_and_spaces_in_paths_work(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "mes donnees é [1] *"
    (root / "POPE").parent.mkdir()
    (root / "POPE").symlink_to(TOY_DATA / "POPE")
    manifest = shelf / "ünï códe" / "mein manifest.yaml"
    where = ["--data-root", str(root), "--out", str(tmp_path / "aus gabe ü"), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", ["dpbench", "run", str(manifest), *where])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 0, capsys.readouterr().err
    assert (tmp_path / "aus gabe ü" / "m" / "records.jsonl").is_file()


ODD = sorted(set(bad_files.pictures()) - {*bad_files.BROKEN_PICTURES, *bad_files.TOO_LONG_PICTURES})


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_drawn(
    name: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CMYK, 16 bits, a palette, one pixel, 2,000 x 2, the first picture of an animation: all are pictures."""
    out = tmp_path / "aus gabe ü.png"
    line = ["visualize", str(shelf / "images" / name), "--method", "grid", "--keep", "16", "--show", "kept"]
    monkeypatch.setattr(sys, "argv", ["dpbench", *line, "--out", str(out)])
    commands.app(standalone_mode=False)
    with Image.open(out) as drawn:
        assert min(drawn.size) > 50


@pytest.mark.parametrize("name", bad_files.TOO_LONG_PICTURES)
def test_images_that_would_take_gigabytes_are_refused(
    name: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["visualize", str(shelf / "images" / name), "--method", "grid", "--keep", "16", "--show", "kept"]
    monkeypatch.setattr(sys, "argv", ["dpbench", *line, "--out", str(tmp_path / "out.png")])
    with pytest.raises(SystemExit) as left:
        commands.main()
    assert left.value.code == 2
    assert "is too long: preprocessing would make 20000 x 20000" in capsys.readouterr().err
