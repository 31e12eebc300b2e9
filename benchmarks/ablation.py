"""Table 5 on the embedded backbone: train four variants with three seeds each, score them, print retention.

    python benchmarks/ablation.py            # from the repository's root; resumes a stopped run

Trainings are in scorers/ablation/VARIANT-SEED; answers and records in results/ablation, run by manifests/ablation.yaml.
"""

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py hides the standard library's module

import subprocess
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import get_args

from scipy.stats import t
from tabulate import tabulate

from dpbench.diffprune.recipe import Variant
from dpbench.report.request import retention
from dpbench.storage.record import Record, read

SEEDS = (0, 1, 2)
SCORERS = Path("scorers/ablation")
RESULTS = Path("results/ablation/records.jsonl")


def dpbench(*arguments: str) -> None:
    """Run a dpbench command in a new process."""
    subprocess.run([sys.executable, "-m", "dpbench", *arguments], check=True)


def train(variant: str, seed: int) -> None:
    """Train one scorer, or resume a stopped training."""
    out = SCORERS / f"{variant}-{seed}"
    resume = ["--resume"] if (out / "training.safetensors").is_file() else []
    flags = ["--backbone", "toy-llava", "--variant", variant, "--seed", str(seed), "--out", str(out)]
    dpbench("train", *flags, *resume)


def format_interval(values: list[float]) -> str:
    """Return mean and 95 % confidence interval over seeds, by Student's t."""
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.1f} ± {half:.1f}"


def format_table(records: list[Record]) -> str:
    """Return average retention per variant and budget over the tasks, mean and interval over seeds."""
    unpruned = {record.cell["task"]: record.score for record in records if record.cell["method"] == "none"}
    scores: dict[tuple[str, int], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if record.cell["method"] == "diffprune":
            variant, seed = Path(record.cell["params"]["checkpoint"]).name.rsplit("-", 1)
            scores[variant, record.cell["keep"]][seed][record.cell["task"]] = record.score
    keeps = sorted({keep for _, keep in scores})
    rows = [
        [
            variant,
            *(
                format_interval([retention(by_task, unpruned) for by_task in scores[variant, keep].values()])
                for keep in keeps
            ),
        ]
        for variant in get_args(Variant)
    ]
    return tabulate(rows, ["Variant", *(f"keep {keep}" for keep in keeps)], tablefmt="github")


def main() -> None:
    """Run missing trainings and cells, and print the table."""
    for seed in SEEDS:
        for variant in get_args(Variant):
            train(variant, seed)
    dpbench("run", "manifests/ablation.yaml")
    print(format_table(read(RESULTS, Record)))


if __name__ == "__main__":
    main()
