"""Run several subjects in turn, round after round, so that a drifting clock hits them all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

Run = Callable[[int], dict[str, float]]
"""One repetition, given its number: milliseconds by stage, `ttft` among them."""

STABLE = 0.05
WINDOW = 3
MOST_WARMUPS = 20
MOST_SECONDS = 60.0
"""Of warm-up, over all subjects: long prompts are not run twenty times for nothing."""


@dataclass(slots=True)
class Series:
    """What was seen of one subject.

    Attributes:
        warmups: rounds before the first that counts.
        seen: milliseconds by stage, round after round.
        seconds: spent in the rounds that count.
    """

    warmups: int = 0
    seen: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def stages(self) -> dict[str, tuple[float, ...]]:
        """Return the times of each stage."""
        return {name: tuple(each[name] for each in self.seen) for name in self.seen[0]}


def interleave(
    runs: Sequence[Run],
    *,
    repetitions: int,
    seconds: float,
    warmups: int,
    after_round: Callable[[float], object] = lambda share: None,
) -> list[Series]:
    """Warm up until every subject is stable, then repeat them in turn.

    Args:
        runs: one per subject.
        repetitions: rounds that count, at least.
        seconds: spent in each subject, at least.
        warmups: rounds before, at least; beyond them at most `MOST_WARMUPS`, and for at most `MOST_SECONDS`.
        after_round: told the share that is done, between rounds.
    """
    warmed = _warm_up(runs, warmups)
    series = [Series(warmups=warmed) for _ in runs]
    turn = warmed
    while (share := _share(series, repetitions, seconds)) < 1:
        after_round(share)
        for run, each in zip(runs, series, strict=True):
            start = time.perf_counter()
            each.seen.append(run(turn))
            each.seconds += time.perf_counter() - start
        turn += 1
    after_round(1.0)
    return series


def _warm_up(runs: Sequence[Run], least: int) -> int:
    history: list[list[float]] = [[] for _ in runs]
    turn, stop = 0, time.perf_counter() + MOST_SECONDS
    while turn < least or (turn < MOST_WARMUPS and time.perf_counter() < stop and not all(map(stable, history))):
        for run, times in zip(runs, history, strict=True):
            times.append(run(turn)["ttft"])
        turn += 1
    return turn


def stable(times: Sequence[float]) -> bool:
    """Return True if the last three times and the three before them have medians within 5 %."""
    if len(times) < 2 * WINDOW:
        return False
    now, before = median(times[-WINDOW:]), median(times[-2 * WINDOW : -WINDOW])
    return abs(now - before) <= STABLE * before


def _share(series: Sequence[Series], repetitions: int, seconds: float) -> float:
    """Return how much of what was asked for is done, by the subject that is farthest behind."""
    rounds = len(series[0].seen) / repetitions
    return min(rounds, min(each.seconds for each in series) / seconds) if seconds else rounds
