"""Subjects run in turn, warm-ups end when times are stable, and every subject gets its repetitions and seconds."""

import time

import pytest

from dpbench.measure import interleave
from dpbench.measure.interleave import MOST_WARMUPS, Run, stable


def subject(name: str, seen: list[tuple[str, int]], times: list[float] | None = None, seconds: float = 0.0) -> Run:
    def run(turn: int) -> dict[str, float]:
        seen.append((name, turn))
        time.sleep(seconds)
        return {"encode": 1.0, "ttft": times[min(turn, len(times) - 1)] if times else 10.0}

    return run


def test_rounds_go_through_all_subjects_in_turn() -> None:
    seen: list[tuple[str, int]] = []
    series = interleave.interleave([subject("a", seen), subject("b", seen)], repetitions=4, seconds=0, warmups=0)
    warmed = series[0].warmups
    assert seen == [(name, turn) for turn in range(warmed + 4) for name in "ab"]
    assert [len(each.seen) for each in series] == [4, 4]
    assert series[0].stages() == {"encode": (1.0,) * 4, "ttft": (10.0,) * 4}


def test_warm_up_goes_on_until_every_subject_is_stable() -> None:
    falling = [100.0, 80.0, 60.0, 40.0, 20.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    seen: list[tuple[str, int]] = []
    series = interleave.interleave(
        [subject("cold", seen, falling), subject("warm", seen)], repetitions=1, seconds=0, warmups=2
    )
    assert series[0].warmups == 10, "the last three times equal the three before"


def test_warm_up_ends_in_any_case() -> None:
    rising = [float(2**n) for n in range(100)]
    series = interleave.interleave([subject("a", [], rising)], repetitions=1, seconds=0, warmups=2)
    assert series[0].warmups == MOST_WARMUPS


def test_warm_up_ends_after_a_minute_of_long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleave, "MOST_SECONDS", 0.05)
    rising = [float(2**n) for n in range(100)]
    run = subject("a", [], rising, seconds=0.02)
    assert 2 <= interleave.interleave([run], repetitions=1, seconds=0, warmups=2)[0].warmups < 6


def test_seconds_are_spent_in_the_fastest_subject_too() -> None:
    runs = [subject("fast", [], seconds=0.005), subject("slow", [], seconds=0.01)]
    series = interleave.interleave(runs, repetitions=1, seconds=0.05, warmups=0)
    assert all(each.seconds >= 0.05 for each in series)
    assert len(series[0].seen) == len(series[1].seen)


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    interleave.interleave([subject("a", [])], repetitions=4, seconds=0, warmups=0, after_round=shares.append)
    assert shares == [0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("times", "expected"),
    [([10] * 5, False), ([10] * 6, True), ([10, 10, 10, 10.4, 10.4, 10.4], True), ([10, 10, 10, 11, 11, 11], False)],
)
def test_stable_is_two_medians_within_five_percent(times: list[float], expected: bool) -> None:
    assert stable(times) is expected
