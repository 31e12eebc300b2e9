"""The ten benchmarks: where their data lies, which number is their score. No torch, no lmms-eval.

Each has a YAML beside this file (`dpb_<name>.yaml`) that lmms-eval reads: prompt, generation, metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from dpbench.errors import ConfigError, MissingError, did_you_mean

ORGANISATIONS = ("lmms-lab-encoder", "lmms-lab")
"""Hub organisations that hold the data sets: lmms-eval 0.7.3 reads the first, earlier versions the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One benchmark.

    Attributes:
        title: the column heading in tables.
        repository: data set repository, without the organisation.
        config: folder of the split inside it.
        split: as the hub names it.
        metric: the lmms-eval metric that is the benchmark's score.
        percent: what turns that metric into 0-100; for MME the share of the maximum over the categories present.
        group: the column whose equal values must be scored together (MME's pairs, MMBench's circles).
        images: folder of the images where they are kept apart (GQA).
    """

    title: str
    repository: str
    config: str
    split: str
    metric: str
    percent: Literal["ratio", "percent", "mme"] = "ratio"
    group: Literal["question_id", "circle"] | None = None
    images: str | None = None

    @property
    def column(self) -> str | None:
        """Return the data column the groups are read from."""
        return {"circle": "index", "question_id": "question_id", None: None}[self.group]


TASKS: Mapping[str, Task] = {
    "gqa": Task(
        title="GQA",
        repository="GQA",
        config="testdev_balanced_instructions",
        split="testdev",
        metric="exact_match",
        images="testdev_balanced_images",
    ),
    "mmbench_en": Task(
        title="MMB",
        repository="MMBench",
        config="en",
        split="dev",
        metric="gpt_eval_score",
        percent="percent",
        group="circle",
    ),
    "mmbench_cn": Task(
        title="MMB-CN",
        repository="MMBench",
        config="cn",
        split="dev",
        metric="gpt_eval_score",
        percent="percent",
        group="circle",
    ),
    "mme": Task(
        title="MME",
        repository="MME",
        config="data",
        split="test",
        metric="mme_perception_score",
        percent="mme",
        group="question_id",
    ),
    "pope": Task(title="POPE", repository="POPE", config="data", split="test", metric="pope_accuracy"),
    "scienceqa": Task(title="SQA", repository="ScienceQA", config="ScienceQA-IMG", split="test", metric="exact_match"),
    "vqav2": Task(title="VQAv2", repository="VQAv2", config="data", split="validation", metric="exact_match"),
    "textvqa": Task(title="TextVQA", repository="textvqa", config="data", split="validation", metric="exact_match"),
    "seedbench": Task(title="SEED", repository="SEED-Bench", config="data", split="test", metric="seed_image"),
    "vizwiz": Task(title="VizWiz", repository="VizWiz-VQA", config="data", split="val", metric="exact_match"),
}


def find(name: str) -> Task:
    """Return a benchmark.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in TASKS:
        raise ConfigError(f"--tasks: there is no task {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]


def yaml_path(name: str) -> Path:
    """Return the file lmms-eval reads for a benchmark."""
    return Path(str(files("dpbench.tasks"))) / f"dpb_{name}.yaml"


def data_files(name: str, data_root: Path | None, config: str | None = None) -> list[Path]:
    """Return the parquet files of a benchmark's split, in order.

    Args:
        name: as in `TASKS`.
        data_root: a folder with one sub-folder per repository, or None for the hub's cache.
        config: another folder of the same repository (GQA's images).

    Raises:
        MissingError: they are not there; says where they were looked for and how to fetch them.
    """
    task = find(name)
    pattern = f"{config or task.config}/{task.split}-*.parquet"
    if data_root is not None:
        folder = data_root / task.repository
        found = sorted(folder.glob(pattern))
        if not found:
            raise MissingError(f"task {name}: no file matches {folder / pattern}; give a --data-root that has it")
        return found
    for organisation in ORGANISATIONS:
        found = sorted(_hub_snapshot(f"{organisation}/{task.repository}").glob(pattern))
        if found:
            return found
    raise MissingError(
        f"task {name}: {task.repository} ({pattern}) is not in the hub's cache; fetch it with: "
        f"hf download --repo-type dataset {ORGANISATIONS[0]}/{task.repository}, or give --data-root"
    )


def _hub_snapshot(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return Path("nowhere")
