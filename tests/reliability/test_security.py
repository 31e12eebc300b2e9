"""Files are data: nothing in one runs, leads out of its folder or tells who ran it; only named methods are imported."""

import ast
import base64
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import bad_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fakehub import FakeHub, serving
from made_records import make_answer, make_record, write_run
from PIL import Image, ImageFile
from places import PACKAGE, TOY_DATA
from rich.console import Console

from dpbench.backbones import miniatures
from dpbench.errors import DpbenchError, ImageError, RecordError
from dpbench.evaluation import runner
from dpbench.manifest.reading import make_manifest
from dpbench.report import runs, zip_file
from dpbench.report.html import thumbnails
from dpbench.storage import record
from dpbench.storage.record import Record
from dpbench.tasks import lmms_eval_adapter
from dpbench.tasks.data.pull import pull
from dpbench.visualize import decisions

ROOT = PACKAGE.parent
QUIET = Console(quiet=True)
PLUGIN = '''
from dataclasses import dataclass
from pathlib import Path
from dpbench.method import Method
Path({marker!r}).write_text("imported")
@dataclass(frozen=True, kw_only=True)
class Nosy(Method):
    """Look around."""
'''


def sources() -> Iterator[Path]:
    for folder in ("dpbench", "baselines", "benchmarks"):
        yield from (ROOT / folder).rglob("*.py")


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_source_can_unpickle_or_run_what_a_file_says() -> None:
    """By call, so that a comment that names one is no finding and an alias of the module is no way around."""
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
    calls = {"torch.load", "eval", "exec", "compile", "pd.read_pickle", "pandas.read_pickle", "os.system"}
    calls |= {f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "full_load", "unsafe_load_all")}
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                base = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names = {name.partition(".")[0] for name in [*base, *(alias.name for alias in node.names)]}
                found += [f"{path}:{node.lineno}: {name}" for name in names & modules]
                found += [
                    f"{path}:{node.lineno}: load" for alias in node.names if base == ["torch"] if alias.name == "load"
                ]
            if not isinstance(node, ast.Call):
                continue
            name, given = dotted(node.func), {each.arg: each.value for each in node.keywords}
            if name in calls or name.endswith(("UnsafeLoader", "FullLoader")):
                found.append(f"{path}:{node.lineno}: {name}")
            for flag, right in (("allow_pickle", False), ("trust_remote_code", False), ("weights_only", True)):
                value = given.get(flag)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is right):
                    found.append(f"{path}:{node.lineno}: {flag}")
            if name in ("np.load", "numpy.load") and "allow_pickle" not in given:
                found.append(f"{path}:{node.lineno}: {name} that does not say allow_pickle=False")
            if name == "yaml.compose" and dotted(given.get("Loader", ast.Name("?"))) != "yaml.SafeLoader":
                found.append(f"{path}:{node.lineno}: {name}")
            if name == "tarfile.open" and any(
                isinstance(each, ast.Attribute) and each.attr.startswith("extract") for each in ast.walk(node)
            ):
                found.append(f"{path}:{node.lineno}: {name}")
    assert not found
    assert len(list(sources())) > 100


WATCH = """
import sys
from pathlib import Path
opened, unpickled, ran = [], [], []
def queued():
    "Between threads and workers of this process, over a pipe: nothing of it was ever in a file."
    frame, names = sys._getframe(2), []
    while frame is not None:
        names.append(frame.f_code.co_filename)
        frame = frame.f_back
    return any("multiprocessing" in Path(name).parts for name in names)
def hook(event, arguments):
    if event == "pickle.find_class" and not queued():
        unpickled.append(arguments)
    if event == "exec" and hasattr(arguments[0], "co_filename"):
        name = arguments[0].co_filename
        if name.startswith({place!r}):
            ran.append(name)
    if event == "os.system" or event == "subprocess.Popen" and {place!r} in str(arguments):
        ran.append(str(arguments))
import dpbench.cli.commands
sys.addaudithook(hook)
for line in {lines!r}:
    sys.argv = ["dpbench", *line]
    try:
        dpbench.cli.commands.main()
    except SystemExit as left:
        assert left.code in (0, None), (line, left.code)
print("UNPICKLED", unpickled)
print("RAN", ran)
"""


def watched(place: Path, *lines: list[str]) -> str:
    script = WATCH.format(place=str(place), lines=list(lines))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_run_train_and_report_unpickle_and_execute_nothing_from_disk(tmp_path: Path) -> None:
    cell = ["run", "--backbone", "toy-llava", "--method", "grid", "--keep", "16", "--tasks", "pope", "--limit", "4"]
    train = ["train", "--backbone", "toy-llava", "--steps", "1", "--batch-size", "2", "--out", "scorer"]
    small = [f"--param={each}" for each in ("num_validation=4", "hidden=16", "heads=2", "layers=1")]
    run = "results/toy-llava-grid-16"
    printed = watched(tmp_path, cell, [*train, *small], ["report", run, "--out", "table.md"])
    assert (tmp_path / "table.md").is_file()
    assert (tmp_path / "scorer" / "scorer.safetensors").is_file()
    assert printed.splitlines()[-2:] == ["UNPICKLED []", "RAN []"]


@pytest.mark.slow  # that the watch of the test above watches; it changes with that test only
def test_the_watch_sees_an_unpickled_file(tmp_path: Path) -> None:
    """A plugin that does what is forbidden, so that the silence above means something."""
    (tmp_path / "nosy.py").write_text(
        "import pickle, pathlib\nfrom dataclasses import dataclass\nfrom dpbench.method import Method\n"
        "pickle.loads(pickle.dumps(pathlib.PurePosixPath('x')))\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Nosy(Method):\n    pass\n"
    )
    plugin(tmp_path)
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    script = f"{path}\n{WATCH.format(place=str(tmp_path), lines=[['check', 'nosy', '--backbone', 'llava']])}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert "PurePosixPath" in done.stdout.split("UNPICKLED")[1]
    assert "nosy.py" in done.stdout.split("RAN")[1]


def plugin(folder: Path) -> None:
    """Register the method `nosy` as an installed package would."""
    info = folder / "nosy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nosy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dpbench.methods]\nnosy = nosy:Nosy\n")


@pytest.mark.slow  # real processes; in one process: tests/test_registry.py
def test_methods_of_others_are_imported_only_when_they_are_named(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "nosy.py").write_text(PLUGIN.format(marker=str(marker)))
    plugin(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def dpbench(*line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dpbench", *line], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "nosy" in dpbench("list", "methods")
    assert not marker.exists()
    cell = ("run", "--backbone", "toy-llava", "--tasks", "pope", "--limit", "1")
    dpbench(*cell, "--method", "none")
    assert not marker.exists()
    dpbench(*cell, "--method", "nosy", "--keep", "16", "--dry-run")
    assert marker.exists()


@pytest.mark.parametrize("name", ["../m", "/tmp/m", "..", ".", "a/b", "a\\b", "", "~", "-x", "a\n", "a\0b"])
def test_a_runs_name_stays_below_the_results(name: str) -> None:
    with pytest.raises(DpbenchError, match="name"):
        make_manifest({"name": name, "backbone": "toy-llava", "methods": ["none"]}, source="test")


@pytest.mark.parametrize("cell_id", ["../../outside", "/etc/passwd", "a\\b", "..\\x"])
def test_a_records_name_cannot_lead_out_of_its_run_folder(tmp_path: Path, cell_id: str) -> None:
    """It is the name of a journal, which is opened, and mended where it ends in the middle of a line."""
    outside = tmp_path / "outside.jsonl"
    outside.write_text("no newline")
    folder = write_run(tmp_path / "results" / "run", [make_record("none", None, "pope", 50.0)])
    line = json.loads((folder / "records.jsonl").read_text())
    (folder / "records.jsonl").write_text(json.dumps({**line, "cell_id": cell_id}) + "\n")
    with pytest.raises(RecordError, match="points outside the run folder"):
        runs.load(folder)
    assert outside.read_text() == "no newline"


@pytest.mark.parametrize(
    "name", ["environment.json", "manifest.yaml", "records.jsonl", "samples/c.jsonl", "answers.parquet"]
)
def test_a_bundle_takes_no_file_that_a_link_leads_to(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"a": "secret"}\n')
    folder = write_run(tmp_path / "run", [make_record("none", None, "pope", 50.0)])
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    with pytest.raises(RecordError, match="is a link that leads out of the run folder"):
        zip_file.write(tmp_path / "out.zip", [folder], lambda _: {})
    assert not (tmp_path / "out.zip").exists()


def test_a_run_folder_that_is_itself_a_link_can_be_bundled(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "disk" / "run", [make_record("none", None, "pope", 50.0)])
    (tmp_path / "link").symlink_to(folder)
    zip_file.write(tmp_path / "out.zip", [tmp_path / "link"], lambda _: {})
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert all(not name.startswith(("/", "..")) and ".." not in name.split("/") for name in archive.namelist())


def test_a_bomb_in_a_run_folders_manifest_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [make_record("none", None, "pope", 50.0)])
    (folder / "manifest.yaml").write_text(bad_files.BOMB)
    with pytest.raises(RecordError, match="is not a manifest that dpbench wrote"):
        runs.load(folder)
    with pytest.raises(RecordError, match="more than 100,000"):
        zip_file.write(tmp_path / "out.zip", [folder], lambda _: {})


@pytest.mark.parametrize("bad", ["data/test-../../../x.parquet", "data/test-00000-of-00001.parquet/../../../../x"])
def test_the_hubs_file_names_stay_below_the_data_root(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "data/test-00000-of-00001.parquet"
    files = {good: (TOY_DATA / "POPE" / good).read_bytes(), f"{bad.removesuffix('.parquet')}.parquet": b"evil"}
    with serving(FakeHub({"lmms-lab-encoder/POPE": files})) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        with pytest.raises(DpbenchError, match="would be written outside its folder; nothing was fetched"):
            list(pull(["pope"], tmp_path / "deep" / "root"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def data_root(folder: Path, images: dict[str, bytes]) -> Path:
    """Copy POPE's mirror, its first images replaced; returns the data root."""
    path = folder / "POPE" / "data" / "test-00000-of-00001.parquet"
    shutil.copytree(TOY_DATA / "POPE", folder / "POPE")
    table = pq.read_table(path)
    rows = table["image"].to_pylist()
    order = list(images.values())
    changed = [{"bytes": order[at] if at < len(order) else row["bytes"], "path": None} for at, row in enumerate(rows)]
    column = table.schema.get_field_index("image")
    field = table.schema.field("image")
    pq.write_table(table.set_column(column, field, pa.array(changed, type=field.type)), path)
    return folder


def test_broken_images_and_bombs_are_failed_samples_and_odd_ones_are_answered(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """The limit of Pillow stays, and what lmms-eval sets, to fill half an image with grey, is not in force."""
    pictures = bad_files.pictures()
    root = data_root(tmp_path / "root", pictures)
    data = {
        "name": "odd",
        "backbone": {"name": "toy-llava", "weights": str(tiny_folder)},
        "methods": ["none"],
        "tasks": ["pope"],
        "protocol": {"limit": len(pictures)},
    }
    outcome = runner.run(make_manifest(data, source="test"), tmp_path / "out", root, device="cpu", console=QUIET)
    (only,) = outcome.added
    lines = (tmp_path / "out" / "odd" / "samples" / f"{only.cell_id}.jsonl").read_text().splitlines()
    failures = {each["doc_id"]: each["failure"] for each in map(json.loads, lines)}
    reasons = {name: failures[at] for at, name in enumerate(pictures)}
    failed = {name for name, reason in reasons.items() if reason}
    assert failed == {*bad_files.BROKEN_PICTURES, *bad_files.TOO_LONG_PICTURES}
    for name in bad_files.TOO_LONG_PICTURES:
        assert "is too long: preprocessing would make 20000 x 20000" in reasons[name]
    assert "decompression bomb" in reasons["bomb.png"]
    assert Image.MAX_IMAGE_PIXELS == (1024 * 1024 * 1024 // 4 // 3)


def test_an_image_is_turned_upright_everywhere_as_in_lmms_eval(tmp_path: Path) -> None:
    """`datasets` follows EXIF when it decodes; the pictures of visualize and of the page must show the same."""
    built = lmms_eval_adapter.build(
        "pope", data_root(tmp_path, {"turned": bad_files.pictures()["turned.jpg"]}), limit=1
    )
    (image,) = built.images(built.requests[0])
    assert image.size == (60, 80)
    (tmp_path / "turned.jpg").write_bytes(bad_files.pictures()["turned.jpg"])
    drawn = decisions.read_image(tmp_path / "turned.jpg")
    assert (drawn.size, drawn.tobytes()) == (image.size, image.convert("RGB").tobytes())
    shown = thumbnails.thumbnail(bad_files.pictures()["turned.jpg"], "whole")
    with Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))) as small:
        assert small.size == (60, 80)
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    built.images(built.requests[0])
    assert lenient == ImageFile.LOAD_TRUNCATED_IMAGES, "other readers' setting is given back"


def test_an_image_too_long_for_its_processor_is_refused_by_name() -> None:
    backbone = miniatures.backbone("qwen2_5_vl")
    with pytest.raises(ImageError, match=r"20000 x 20 pixels is too long for Qwen2\.5-VL"):
        backbone.prompt([Image.new("RGB", (20_000, 20))], "?", None)


SECRETS = {
    "HF_TOKEN": "hf_ThisIsNoRealTokenAtAll1234",
    "HUGGING_FACE_HUB_TOKEN": "hf_NorIsThisOneReal56789012",
    "OPENAI_API_KEY": "sk-neitherThisNorThat123456",
    "AWS_SECRET_ACCESS_KEY": "kept/secret/by/nobody1234",
    "USER": "somebody-somewhere",
    "LOGNAME": "somebody-somewhere",
    "HOSTNAME": "a-machine-with-a-name",
}


@pytest.mark.slow  # every command in a process of its own
def test_no_file_that_is_written_tells_a_secret(tmp_path: Path, tiny_folder: Path) -> None:
    """Everything that run, report, its page and its bundle write, against the environment they ran in."""
    home = tmp_path / "home-of-somebody"
    place = home / "work"
    place.mkdir(parents=True)
    shutil.copytree(tiny_folder, home / "models" / "mine")
    manifest = {"name": "m", "backbone": {"name": "toy-llava", "weights": str(home / "models" / "mine")}}
    manifest |= {"methods": ["none", "grid"], "budgets": {"keep": [16]}, "tasks": ["pope"], "protocol": {"limit": 4}}
    (place / "m.yaml").write_text(yaml.safe_dump(manifest))
    environment = {**os.environ, **SECRETS, "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def dpbench(*line: str) -> None:
        command = [sys.executable, "-m", "dpbench", *line]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment)
        assert done.returncode == 0, done.stderr

    dpbench("run", "m.yaml")
    dpbench("report", "--bundle", "sent.zip")
    run = place / "results" / "m"
    local = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with zipfile.ZipFile(io.BytesIO((place / "sent.zip").read_bytes())) as archive:
        sent = {name: archive.read(name) for name in archive.namelist()}
    assert {"manifest.yaml", "environment.json", "records.jsonl"} <= set(local)
    assert len(sent) > 5
    kept = {name: data for name, data in (local | sent).items() if not name.endswith(".lock")}  # that says who waits
    for secret in SECRETS.values():
        assert not [name for name, data in kept.items() if secret.encode() in data], secret
    host = re.compile(rb"\b" + re.escape(platform.node().encode()) + rb"\b")
    assert not [name for name, data in kept.items() if not name.endswith(".html") and host.search(data)]
    assert b"home-of-somebody" not in local["environment.json"]
    assert not [name for name, data in sent.items() if b"home-of-somebody" in data]


def test_remote_code_cannot_be_asked_for() -> None:
    data = {"name": "m", "backbone": {"name": "toy-llava", "trust_remote_code": True}, "methods": ["none"]}
    with pytest.raises(DpbenchError, match="unknown key 'trust_remote_code'"):
        make_manifest(data, source="test")


def test_a_journal_that_is_a_run_folders_own_is_read(tmp_path: Path) -> None:
    row = make_record("none", None, "pope", 50.0)
    folder = write_run(tmp_path / "run", [row], {row.cell_id: [make_answer("pope", 0, "a", {})]})
    assert [each.cell_id for each in record.read(folder / "records.jsonl", Record)] == [row.cell_id]
    zip_file.write(tmp_path / "out.zip", [folder], lambda _: {})
