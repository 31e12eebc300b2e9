"""Reasons to doubt a row: scatter, a falling clock, throttling, other processes."""

import math

import pytest

from dpbench.machine.nvml import Reading
from dpbench.measure.stability import find_flags, spread, summarize_readings


def reading(clock: int | None = 1980, throttles: tuple[str, ...] = (), foreign: int = 0) -> Reading:
    return Reading(clock_mhz=clock, temperature_c=50, power_w=300.0, throttles=throttles, foreign=foreign)


STEADY = [10.0 + 0.01 * (n % 5) for n in range(50)]


def test_a_steady_series_has_no_flag() -> None:
    assert not list(find_flags(STEADY, [reading()] * 5))


def test_a_single_time_is_flagged() -> None:
    assert list(find_flags([10.0], [reading()] * 3)) == ["measured once: how far its times scatter is unknown"]
    assert not list(find_flags([10.0, 10.1]))


def test_the_spread_is_the_ninetieth_over_the_tenth_percentile() -> None:
    assert spread([float(n) for n in range(10, 21)]) == pytest.approx(19 / 11)


@pytest.mark.parametrize("times", [[0.0, 0.0], [math.nan, 5.0], [-1.0, 5.0]])
def test_what_is_no_time_is_never_steady(times: list[float]) -> None:
    assert list(find_flags(times)) == ["scatters: 90th over 10th percentile is inf"]


@pytest.mark.parametrize("times", [[7.0] * 2, [7.0] * 30, [7.0, 7.1]])
def test_equal_times_are_steady(times: list[float]) -> None:
    assert not list(find_flags(times))


def test_scatter_is_flagged_with_its_size() -> None:
    (flag,) = find_flags([10.0, 12.0] * 25)
    assert flag == "scatters: 90th over 10th percentile is 1.20"


def test_a_single_outlier_is_not_flagged_as_scatter() -> None:
    assert not list(find_flags([*STEADY, 100.0]))


def test_a_clock_that_drops_during_the_run_is_flagged_but_an_idle_one_before_and_after_is_not() -> None:
    during = [reading(1980), reading(1980), reading(1500)]
    (flag,) = find_flags(STEADY, [reading(345), *during, reading(345)])
    assert flag == "the clock dropped to 1500 MHz from a median of 1980"
    assert not list(find_flags(STEADY, [reading(345), *during[:2], reading(345)]))


def test_throttling_and_other_processes_are_named() -> None:
    reasons = list(find_flags(STEADY, [reading(), reading(throttles=("power cap",)), reading(foreign=2)]))
    assert reasons == ["throttled: power cap", "2 other processes computed on the GPU"]


def test_the_record_keeps_before_least_median_most_and_after() -> None:
    summary = summarize_readings([reading(345), reading(1980), reading(1900), reading(1950), reading(600)])
    assert summary["clock_mhz"] == {"before": 345, "least": 345, "median": 1900, "most": 1980, "after": 600}
    assert summary["readings"] == 5
    assert summarize_readings([]) == {}


def test_a_value_the_driver_does_not_report_is_absent() -> None:
    assert "clock_mhz" not in summarize_readings([reading(None)])
