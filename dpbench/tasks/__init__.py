"""The ten benchmarks: where their data is, and which number is their score. No torch, no lmms-eval.

Each has a YAML file in this folder (`dpb_<name>.yaml`) that lmms-eval reads: prompt, generation, metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from dpbench.errors import ConfigError, did_you_mean

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
        num_rows: rows of the split.
        num_questions: questions asked, if fewer than there are rows.
        columns: the ones that prompt and score are made of.
        revision: hub commit; None if unknown, then `num_rows` and `columns` pin the data.
        num_images: distinct images, where the benchmark's paper states them.
        metric: the lmms-eval metric that is the benchmark's score; None if only a server has the answers.
        measure: that metric in words.
        percent: how that metric becomes 0-100; for MME the share of the maximum over the categories present.
        scale: of the metric in publications.
        protocol: our choices, and the published figure that the score may be compared to.
        group: the column whose equal values must be scored together (MME's pairs, MMBench's circles).
        images: folder of the images if they are stored apart from the questions (GQA).
        chance: score, 0-100, of the best answers that need no image: one over the number of options, always "yes" for
            an F1; 0 for open answers.
        middle_frame: of a row's several images (a video's frames) only the middle one is shown.
        variant_of: the benchmark that this is a variant of.
    """

    title: str
    repository: str
    config: str
    split: str
    num_rows: int
    columns: tuple[str, ...]
    revision: str | None = None
    num_questions: int | None = None
    num_images: int | None = None
    metric: str | None
    measure: str
    percent: Literal["ratio", "percent", "mme"] = "ratio"
    scale: str = "0-100"
    protocol: str = ""
    group: Literal["question_id", "circle"] | None = None
    images: str | None = None
    chance: float = 0.0
    middle_frame: bool = False
    variant_of: str | None = None

    @property
    def num_asked(self) -> int:
        """Return how many questions the whole benchmark asks."""
        return self.num_rows if self.num_questions is None else self.num_questions

    @property
    def column(self) -> str | None:
        """Return the data column that identifies the groups."""
        return {"circle": "index", "question_id": "question_id", None: None}[self.group]

    @property
    def units(self) -> str:
        """Return what is right or wrong as a whole, in words."""
        return {"circle": "circles", "question_id": "pairs", None: "questions"}[self.group]

    @property
    def samples_per_unit(self) -> int:
        """Return the most samples that one unit has: MMBench turns a question to each of up to four options."""
        return {"circle": 4, "question_id": 2, None: 1}[self.group]


_MMBENCH = Task(
    title="MMB",
    repository="MMBench",
    revision="56ba1af8954932c4804bd3f522e05ed96e63b654",
    config="en",
    split="dev",
    num_rows=4329,
    columns=("index", "question", "hint", "answer", "A", "B", "C", "D", "category", "L2-category", "source", "split",
             "image"),
    metric="gpt_eval_score",
    measure="CircularEval accuracy",
    percent="percent",
    protocol="as LLaVA-1.5's 64.7, with wording: llava; letter or option text, read without GPT",
    group="circle",
    chance=25.0,  # who picks the same content in all four rotations is right once in four
)  # fmt: skip
_VQAV2 = Task(
    title="VQAv2",
    repository="VQAv2",
    revision="32665d35052eb4a6d4414851c3c829a72754915a",
    config="data",
    split="validation",
    num_rows=214_354,
    columns=("question", "question_id", "answers", "image"),
    num_images=40_504,
    metric="exact_match",
    measure="VQA accuracy",
    protocol="validation; LLaVA-1.5's 78.5 is test-dev",
)
_SEED = Task(
    title="SEED",
    repository="SEED-Bench",
    revision="74c4ea0cee96786739e4ccb97d227818a05ae752",
    config="data",
    split="test",
    num_rows=17_990,
    columns=("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "data_type", "question_id", "image"),
    num_questions=14_232,
    metric="seed_image",
    measure="accuracy, images",
    protocol="images only, as LLaVA-1.5's 66; its 60.5 is seedbench_all",
    chance=25.0,  # four options
)
TASKS: Mapping[str, Task] = {
    "gqa": Task(
        title="GQA",
        repository="GQA",
        revision="a6e72d6e1b912da88af8b2f9eba05d5ea8ec2dd8",
        config="testdev_balanced_instructions",
        split="testdev",
        num_rows=12_578,
        columns=("imageId", "question", "answer"),
        num_images=398,
        metric="exact_match",
        measure="exact match",
        protocol="test-dev balanced, as LLaVA-1.5's 61.9",
        images="testdev_balanced_images",
    ),
    "mmbench_en": _MMBENCH,
    "mmbench_cn": replace(
        _MMBENCH, title="MMB-CN", config="cn", protocol=_MMBENCH.protocol.replace("64.7", "58.1") + "; all in Chinese"
    ),
    "mme": Task(
        title="MME",
        repository="MME",
        revision="d6c9023f017b564f7b3ccccf5348166bce8fdbcd",
        config="data",
        split="test",
        num_rows=2374,
        columns=("question_id", "question", "answer", "category", "image"),
        num_images=1187,
        metric="mme_total_score",
        measure="sum, % of maximum",
        percent="mme",
        scale="0-2800",
        protocol="perception + cognition, as LLaVA-1.5's 1862; each is in the record",
        group="question_id",
        chance=50.0,  # one yes and one no an image: a guess that tells which has both right on every other image
    ),
    "pope": Task(
        title="POPE",
        repository="POPE",
        revision="4db1276663dfa5eb8ad16a52d24c31a09e470896",
        config="data",
        split="test",
        num_rows=9000,
        columns=("question_id", "question", "answer", "category", "image"),
        num_images=500,
        metric="pope_f1_score",
        measure="F1, mean of 3 splits",
        protocol="as LLaVA-1.5's 85.9, with reading: llava; accuracy is in the record",
        chance=200 / 3,  # always yes where half of the answers are: precision 1/2, recall 1
    ),
    "scienceqa": Task(
        title="SQA",
        repository="ScienceQA",
        revision="69dd4d6b67373d38f96a5badd5d24d0eb5bcdc50",
        config="ScienceQA-IMG",
        split="test",
        num_rows=2017,
        columns=("question", "choices", "hint", "answer", "image"),
        metric="exact_match",
        measure="accuracy",
        protocol="with an image, as LLaVA-1.5's 69.5, with reading: llava",
        chance=40.1,  # random choice on questions with an image: the ScienceQA paper's Table 3
    ),
    "vqav2": _VQAV2,
    "textvqa": Task(
        title="TextVQA",
        repository="textvqa",
        revision="9c0699cd19768ac5ab97568f6b3cbac4c0062884",
        config="data",
        split="validation",
        num_rows=5000,
        columns=("question", "question_id", "answers", "ocr_tokens", "image"),
        num_images=3166,
        metric="exact_match",
        measure="VQA accuracy",
        protocol="with OCR tokens as LLaVA-1.5's 58.2; with ocr: false as its 46 and LLaVA-NeXT's 64.9",
    ),
    "seedbench": _SEED,
    "vizwiz": Task(
        title="VizWiz",
        repository="VizWiz-VQA",
        config="data",
        split="val",
        num_rows=4319,
        columns=("question", "question_id", "answers", "image"),
        num_images=4319,
        metric="exact_match",
        measure="VQA accuracy",
        protocol="validation, as LLaVA-1.5's 54.3; 'Unanswerable' is an answer",
    ),
}
"""The ten benchmarks of the tables, in their order."""

VARIANTS: Mapping[str, Task] = {
    "vqav2_val_10k": replace(
        _VQAV2,
        title="VQAv2-10k",
        num_questions=10_000,
        num_images=None,
        protocol="a part of validation, chosen by question id; no published figure",
        variant_of="vqav2",
    ),
    "vqav2_testdev": replace(
        _VQAV2,
        title="VQAv2-testdev",
        split="testdev",
        num_rows=107_394,
        num_images=None,
        columns=("question", "question_id", "image"),
        metric=None,
        measure="none: EvalAI's",
        protocol="as LLaVA-1.5's 78.5; writes a submission file",
        variant_of="vqav2",
    ),
    "seedbench_all": replace(
        _SEED,
        title="SEED-all",
        metric="seed_all",
        num_questions=None,
        measure="accuracy, all",
        middle_frame=True,
        protocol="images and videos, as LLaVA-1.5's 60.5; a video is its middle frame (58.6 in its paper)",
        variant_of="seedbench",
    ),
}
"""Variants of benchmarks, run only when named."""

ALL: Mapping[str, Task] = {**TASKS, **VARIANTS}
"""All that `--tasks` accepts."""


def find(name: str) -> Task:
    """Return a benchmark or variant.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in ALL:
        raise ConfigError(f"--tasks: there is no task {name!r}; {did_you_mean(name, ALL)}")
    return ALL[name]


def yaml_path(name: str) -> Path:
    """Return the file that lmms-eval reads for a benchmark."""
    return Path(str(files("dpbench.tasks"))) / f"dpb_{name}.yaml"


def yaml_paths(name: str) -> tuple[Path, ...]:
    """Return the files that define what a benchmark asks: its own, and for a variant that of its base."""
    base = find(name).variant_of
    return (yaml_path(name), *((yaml_path(base),) if base else ()))
