"""Run several measurements in turn, round after round, so that a drifting clock affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

Run = Callable[[int], dict[str, float]]
"""One repetition: takes its number and returns milliseconds by stage, including `ttft`."""

STABLE = 0.05
WINDOW = 3
MAX_WARMUPS = 20
MAX_WARMUP_SECONDS = 60.0
"""Of warm-up over all runs, so that long prompts are not run twenty times for nothing."""


@dataclass(slots=True)
class Series:
    """The measured repetitions of one run.

    Attributes:
        warmups: rounds before the first that counts.
        rounds: milliseconds by stage, one entry per round.
        seconds: spent in the rounds that count.
    """

    warmups: int = 0
    rounds: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def stages(self) -> dict[str, tuple[float, ...]]:
        """Return the times of each stage."""
        return {name: tuple(times[name] for times in self.rounds) for name in self.rounds[0]}


def interleave(
    runs: Sequence[Run],
    *,
    repetitions: int,
    seconds: float,
    warmups: int,
    after_round: Callable[[float], object] = lambda share: None,
) -> list[Series]:
    """Warm up until the times of every run are stable, then repeat the runs in turn.

    Args:
        runs: what to measure.
        repetitions: minimum number of rounds that count.
        seconds: minimum time spent in each run.
        warmups: minimum number of warm-up rounds; at most `MAX_WARMUPS` rounds or `MAX_WARMUP_SECONDS` more follow.
        after_round: called between rounds with the share of the work that is done.
    """
    num_warmups = _warm_up(runs, warmups)
    all_series = [Series(warmups=num_warmups) for _ in runs]
    turn = num_warmups
    while (share := _share_done(all_series, repetitions, seconds)) < 1:
        after_round(share)
        for run, series in zip(runs, all_series, strict=True):
            start = time.perf_counter()
            series.rounds.append(run(turn))
            series.seconds += time.perf_counter() - start
        turn += 1
    after_round(1.0)
    return all_series


def _warm_up(runs: Sequence[Run], least: int) -> int:
    """Run rounds until the times are stable or a limit is reached; return their number."""
    history: list[list[float]] = [[] for _ in runs]
    turn, stop = 0, time.perf_counter() + MAX_WARMUP_SECONDS
    while turn < least or (turn < MAX_WARMUPS and time.perf_counter() < stop and not all(map(is_stable, history))):
        for run, times in zip(runs, history, strict=True):
            times.append(run(turn)["ttft"])
        turn += 1
    return turn


def is_stable(times: Sequence[float]) -> bool:
    """Return True if the medians of the last three times and of the three before them differ by at most 5 %."""
    if len(times) < 2 * WINDOW:
        return False
    now, before = median(times[-WINDOW:]), median(times[-2 * WINDOW : -WINDOW])
    return abs(now - before) <= STABLE * before


def _share_done(all_series: Sequence[Series], repetitions: int, seconds: float) -> float:
    """Return the share of the requested work that is done, by the run that is farthest behind."""
    rounds = len(all_series[0].rounds) / repetitions
    return min(rounds, min(series.seconds for series in all_series) / seconds) if seconds else rounds
