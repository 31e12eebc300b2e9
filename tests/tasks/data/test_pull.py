"""Fetching from a hub: what is read and nothing else, resumed, inside the folder, or one sentence why not."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakehub import COMMIT, FakeHub, pinned, serving
from huggingface_hub.hf_api import DatasetInfo
from huggingface_hub.utils import enable_progress_bars
from places import TOY_DATA

from dpbench.cli import commands
from dpbench.errors import DpbenchError
from dpbench.tasks.data.pull import pull


def mirror(repository: str) -> dict[str, bytes]:
    folder = TOY_DATA / repository
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def dpbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command against a hub, with an empty cache, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPBENCH_DATA", raising=False)
    enable_progress_bars()  # loading a model in this process switches them off
    hub_settings = "huggingface_hub.constants"
    monkeypatch.setattr(f"{hub_settings}.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(f"{hub_settings}.HF_HUB_DISABLE_XET", True)

    def run(hub: FakeHub, *arguments: str, offline: bool = False) -> Done:
        monkeypatch.setattr(f"{hub_settings}.ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{hub_settings}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{hub_settings}.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(sys, "argv", ["dpbench", *arguments])
        with pytest.raises(SystemExit) as done:
            commands.main()
        printed = capsys.readouterr()
        return Done(int(done.value.code or 0), printed.out, printed.err)

    return run


def test_only_what_a_task_reads_is_fetched_and_verifies(tmp_path: Path, dpbench: Run) -> None:
    more = {"README.md": b"#", "train_balanced_images/train-00000-of-00001.parquet": b"large"}
    with serving(FakeHub({"lmms-lab-encoder/GQA": mirror("GQA") | more})) as hub:
        done = dpbench(hub, "data", "pull", "gqa", "--to", "root")
        assert (done.returncode, done.stdout.split(": ")[0]) == (
            0,
            f"lmms-lab-encoder/GQA@{pinned('lmms-lab-encoder/GQA')[:12]}",
        )
        assert "100%" in done.stderr
        fetched = {path.relative_to(tmp_path / "root").as_posix() for path in (tmp_path / "root").rglob("*.parquet")}
        assert fetched == {f"GQA/{name}" for name in mirror("GQA")}
        noted = json.loads((tmp_path / "root/GQA/.dpbench-revision.json").read_text())
        assert (noted["repository"], noted["revision"], set(noted["files"])) == (
            "lmms-lab-encoder/GQA", pinned("lmms-lab-encoder/GQA"), set(mirror("GQA"))
        )  # fmt: skip
        hub.asked.clear()
        assert dpbench(hub, "data", "pull", "gqa", "--to", "root").returncode == 0
        assert not [line for line in hub.asked if line.startswith("GET datasets/")]
    checked = dpbench(hub, "data", "verify", "gqa", "--data-root", "root")
    assert checked.returncode == 1
    assert "has 208 rows in root/GQA, expected 12578" in checked.stdout
    assert "SHA-256" not in checked.stdout


def test_the_cache_is_filled_from_the_second_organisation_and_read_by_run(tmp_path: Path, dpbench: Run) -> None:
    with serving(FakeHub({"lmms-lab/POPE": mirror("POPE") | {"README.md": b"#"}})) as hub:
        assert dpbench(hub, "data", "pull", "pope").returncode == 0
    checked = dpbench(hub, "data", "verify", "pope")
    assert f"lmms-lab/POPE@{pinned('lmms-lab/POPE')[:12]}" in checked.stdout
    assert "has 240 rows" in checked.stdout
    assert "wrong revision" not in checked.stdout


def test_a_broken_download_goes_on_where_it_was(tmp_path: Path, dpbench: Run) -> None:
    large = {"data/test-00000-of-00001.parquet": bytes(range(256)) * 100_000}
    with serving(FakeHub({"lmms-lab/POPE": large}, break_at=15_000_000)) as hub:
        assert dpbench(hub, "data", "pull", "pope", "--to", "root").returncode == 0
        assert len(hub.ranges) == 1
        assert int(hub.ranges[0].removeprefix("bytes=").split("-")[0]) > 0
    assert (tmp_path / "root/POPE/data/test-00000-of-00001.parquet").read_bytes() == next(iter(large.values()))


@pytest.mark.parametrize(
    ("repositories", "arguments", "message"),
    [
        ({}, (), "the hub has no data set lmms-lab-encoder/POPE and lmms-lab/POPE"),
        ({"lmms-lab/POPE": {"Full/x-0.parquet": b""}}, (), "has no file data/test-*.parquet, which task pope reads"),
        ({"lmms-lab/POPE": {}}, ("--revision", "v9"), "lmms-lab/POPE have no revision 'v9'"),
    ],
)
def test_a_hub_without_the_data_is_one_sentence(
    tmp_path: Path,
    dpbench: Run,
    repositories: Mapping[str, Mapping[str, bytes]],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    with serving(FakeHub(repositories)) as hub:
        done = dpbench(hub, "data", "pull", "pope", "--to", "root", *arguments)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "root").exists()


def test_a_hub_without_the_commit_a_task_is_pinned_to_says_how_to_go_on(tmp_path: Path, dpbench: Run) -> None:
    with serving(FakeHub({"lmms-lab/POPE": mirror("POPE")}, commit="d" * 40)) as hub:
        done = dpbench(hub, "data", "pull", "pope", "--to", "root")
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
        assert (
            f"have no revision '{pinned('lmms-lab/POPE')}' on the hub; give another with --revision REVISION --to DIR"
            in done.stderr
        )
        assert dpbench(hub, "data", "pull", "pope", "--to", "root", "--revision", "main").returncode == 0


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_it_says_what_to_run_elsewhere(tmp_path: Path, dpbench: Run, offline: bool) -> None:
    nobody = FakeHub({}, endpoint="http://127.0.0.1:9")
    done = dpbench(nobody, "data", "pull", "pope", "mme", "--to", "root", offline=offline)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "lmms-lab-encoder/POPE cannot be fetched from http://127.0.0.1:9" in done.stderr
    assert "`dpbench data pull pope mme --to root` on a machine with network" in done.stderr


@pytest.mark.parametrize(
    "path", ["data/test-/../../../../away-0.parquet", "data/test-//away.parquet", "data/test-\\..\\..\\away.parquet"]
)
def test_a_file_that_leads_out_of_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    hostile = DatasetInfo(id="lmms-lab/POPE", sha=COMMIT, siblings=[{"rfilename": path, "size": 1}])
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: hostile)
    with pytest.raises(DpbenchError, match="written outside its folder; nothing was fetched"):
        list(pull(["pope"], tmp_path / "root"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stale", [False, True])
def test_only_files_of_the_same_revision_stay_known(tmp_path: Path, dpbench: Run, stale: bool) -> None:
    with serving(FakeHub({"lmms-lab/MMBench": mirror("MMBench")})) as hub:
        assert dpbench(hub, "data", "pull", "mmbench_en", "--to", "root").returncode == 0
        hub.commit = "c" * 40 if stale else None
        assert dpbench(hub, "data", "pull", "mmbench_cn", "--to", "root", "--revision", "main").returncode == 0
    wanted = ["--revision", "c" * 12] if stale else []
    checked = dpbench(hub, "data", "verify", "mmbench_en", "mmbench_cn", "--data-root", "root", "--quick", *wanted)
    assert ("mmbench_en: wrong revision" in checked.stdout) == stale
    assert "mmbench_cn: wrong revision" not in checked.stdout
