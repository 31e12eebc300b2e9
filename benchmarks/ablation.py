"""Table 5 on the embedded backbone: train every variant and control with five seeds, score them, print the table.

    python benchmarks/ablation.py            # from the repository's root; resumes a stopped run

Trainings are in scorers/ablation/NAME-SEED, the same data, schedule and seeds for all; their cards are gathered in
results/ablation/trainings.jsonl, from which the report chooses the control. Answers and records are in
results/ablation, run by manifests/ablation.yaml.
"""

import sys

sys.path.pop(0)  # a script's folder comes first, where selectors.py hides the standard library's module

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

SEEDS = (0, 1, 2, 3, 4)
VARIANTS = {
    "diffprune": (),
    "gumbel-ste": ("--variant", "gumbel-ste"),
    "gumbel-ste-mean": ("--variant", "gumbel-ste", "--param", "fill=mean"),
    "gumbel-ste-noise": ("--variant", "gumbel-ste", "--param", "fill=noise"),
    "identity-ste": ("--variant", "identity-ste"),
    "scale-gate": ("--variant", "scale-gate"),
    "global-denoiser": ("--variant", "global-denoiser"),
}
"""The name of a scorer's folder without its seed, and the flags it is trained with."""
SCORERS = Path("scorers/ablation")
RESULTS = Path("results/ablation")


def dpbench(*arguments: str) -> None:
    """Run a dpbench command in a new process."""
    subprocess.run([sys.executable, "-m", "dpbench", *arguments], check=True)


def train(name: str, seed: int) -> None:
    """Train one scorer, or resume a stopped training."""
    out = SCORERS / f"{name}-{seed}"
    resume = ["--resume"] if (out / "training.safetensors").is_file() else []
    dpbench("train", "--backbone", "toy-llava", *VARIANTS[name], "--seed", str(seed), "--out", str(out), *resume)


def read_cards() -> Iterator[dict[str, object]]:
    """Yield how each scorer was trained and its validation losses, with the name of its folder."""
    for seed in SEEDS:
        for name in VARIANTS:
            folder = SCORERS / f"{name}-{seed}"
            yield {"scorer": folder.name, **json.loads((folder / "card.json").read_text(encoding="utf-8"))}


def main() -> None:
    """Run missing trainings and cells, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS, help="train these only, and stop there")
    chosen = parser.parse_args().seeds
    for seed in chosen:
        for name in VARIANTS:
            train(name, seed)
    if set(chosen) != set(SEEDS):
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "trainings.jsonl").write_text("".join(json.dumps(card) + "\n" for card in read_cards()))
    dpbench("run", "manifests/ablation.yaml")
    dpbench("report", str(RESULTS), "--table", "5", "--format", "markdown")


if __name__ == "__main__":
    main()
