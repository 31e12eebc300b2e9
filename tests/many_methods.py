"""A run of as many methods as a test asks for: the shipped ones first, then other people's."""

from pathlib import Path

from made_records import make_profile, make_record, write_run

from dpbench import tasks
from dpbench.report.figures.colours import LOOKS
from dpbench.storage import record

SHIPPED = [name for name in LOOKS if name not in ("none", "gumbel-ste", "scale-gate", "global-denoiser")]
THEIRS = [f"theirs-{number}" for number in range(12)] + ["a-long-name-of-a-third-party-method"]


def methods(count: int) -> list[str]:
    return ["none", *(SHIPPED + THEIRS)[: count - 1]]


def write_methods(folder: Path, count: int) -> Path:
    """Write a run of so many methods at three budgets, with profiles; many keep nearly the same."""
    budgets = [(name, keep) for name in methods(count)[1:] for keep in (48, 32, 16)]
    spread = {name: (7 * at) % count for at, name in enumerate(methods(count))}
    rows = [make_record("none", None, task, 90.0) for task in tasks.TASKS]
    rows += [
        make_record(name, keep, task, 40 + keep / 2 + 20 * (spread[name] / count) ** 3)
        for name, keep in budgets
        for task in tasks.TASKS
    ]
    write_run(folder, rows)
    record.append(folder / "profile.jsonl", make_profile("none", "all", (30.0,)))
    for name, keep in budgets:
        profile = make_profile(name, str(keep), (10 + keep / 9 + spread[name] / 9,), num_visual=float(keep))
        record.append(folder / "profile.jsonl", profile)
    return folder
