"""Tables of probes against made-up records whose answers are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dpbench.probe.statistics import pack
from dpbench.report.tables import probes
from dpbench.report.tables.probe_landscape import roughness
from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section
from dpbench.storage.record import Probe

SHARED = {"spread": 0.2, "data": "toy", "batches": 4, "batch_size": 2, "held_out": 2, "points": 5}


def line(probe: str, setting: dict[str, Any], **values: tuple[float, ...]) -> Probe:
    return Probe(
        probe=probe,
        model="toy-llava",
        site="projector",
        checkpoint=None,
        step=0,
        setting=setting,
        shared=SHARED,
        values=values,
        sources="s",
        seconds=1.0,
        finished="2026-01-01T00:00:00+00:00",
        environment={},
    )


def cells(section: Section) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in section.rows if row.kind == "data"]


def coherence(way: str, rows: list[list[float]], after: tuple[float, ...] = ()) -> Probe:
    gradients = np.array(rows, dtype=np.float64)
    setting = {"way": way, "keep": 16, "tau": 0.15, "sources": "both"}
    values = {"gram": pack(gradients @ gradients.T), "losses": (1.0,) * len(rows)}
    return line("coherence", setting, **values, **({"after_step": after} if after else {}))


def test_coherence_shows_cosines_the_ratio_and_the_loss_after_a_step() -> None:
    agree = coherence("diffprune", [[3.0, 4.0]] * 4, (2.0, 4.0, 1.0, 2.0, 5.0, 5.0))
    apart = coherence("gumbel-ste", [[1e5, 0], [0, 1e5], [-1e5, 0], [0, -1e5]])
    (section,) = probes.sections([agree, apart])
    assert cells(section) == [
        ["diffprune", "images and noise", "1.000 [1.000, 1.000]", "-", "1.000", "5", "3.00", "1.50"],
        ["gumbel-ste", "images and noise", cells(section)[1][2], cells(section)[1][3], "0.000", "1e+05", "-", "-"],
    ]
    assert cells(section)[1][2].startswith("-0.333 [")
    assert cells(section)[1][3] == "-3.0x [unbounded]"
    assert section.frame.loc[0, "cosine"] == 1
    assert "unbounded where this row's interval holds 0" in render(section, "markdown")


def test_gradients_that_are_not_finite_are_named_so() -> None:
    broken = replace(coherence("gumbel-ste", [[1.0, 0]] * 4), values={"gram": (float("nan"),) * 10, "losses": ()})
    (section,) = probes.sections([broken])
    assert cells(section)[0][2] == "not finite"


def test_a_probe_measured_again_by_other_code_is_shown_once() -> None:
    old = coherence("diffprune", [[1.0, 0], [0, 1.0], [1.0, 0], [0, 1.0]])
    new = replace(coherence("diffprune", [[1.0, 0]] * 4), sources="t", finished="2026-02-01T00:00:00+00:00")
    (section,) = probes.sections([new, old])
    assert [row[2] for row in cells(section)] == ["1.000 [1.000, 1.000]"]


def landscape(way: str, number: int, losses: tuple[float, ...]) -> Probe:
    setting = {"way": way, "keep": 16, "tau": 0.15, "range": 1.0, "line": number}
    return line("landscape", setting, losses=losses)


def test_roughness_is_of_steps_second_differences_and_jumps() -> None:
    rough = roughness(np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 6.0, 6.0]]))
    assert rough["step"].tolist() == [1, 2]
    assert rough["second"].tolist() == [0, 6]
    assert rough["largest"].tolist() == [1, 6]


def test_a_few_jumps_have_the_mean_step_of_a_slope_and_show_in_the_rest() -> None:
    smooth = [landscape("diffprune", number, (0.0, 1.0, 2.0, 3.0, 4.5)) for number in range(3)]
    jumps = [landscape("gumbel-ste", number, (0.0, 0.0, 4.5, 4.5, 4.5)) for number in range(3)]
    (section,) = probes.sections([*smooth, *jumps])
    first, second = cells(section)
    assert first == ["diffprune", "1.1", "-", "0.17", "-", "1.3 [1.3, 1.3]"]
    assert second == ["gumbel-ste", "1.1", "1.0x [1.0, 1.0]", "3", "18.0x [18.0, 18.0]", "4.0 [4.0, 4.0]"]
    assert "along 3 filter-normalised directions of 5 points" in section.notes[0]


def noise(form: str, top1: tuple[float, ...], keep: float | None = 0.5, tau: float | None = None) -> Probe:
    setting = {"form": form, "scores": None if keep is None else "random", "keep": keep, "tau": tau}
    return line("noise", setting, top1=top1, top5=(1.0, 1.0), losses=(0.5, 0.7))


def test_noise_is_compared_with_removal_batch_by_batch() -> None:
    lines = [
        noise("unpruned", (1.0, 0.5), keep=None),
        noise("removal", (0.75, 0.25)),
        noise("mask", (0.5, 0.0)),
        noise("soft", (0.75, 0.5), tau=0.15),
    ]
    (section,) = probes.sections(lines)
    assert cells(section) == [
        ["unpruned", "75.0", "-", "100.0", "-", "0.600"],
        ["removal", "50.0", "-", "100.0", "-", "0.600"],
        ["noise in their place", "25.0", "-25.0 [-25.0, -25.0]", "100.0", "0.0 [0.0, 0.0]", "0.600"],
        ["soft weights, tau 0.15", "62.5", "12.5 [0.0, 25.0]", "100.0", "0.0 [0.0, 0.0]", "0.600"],
    ]


@pytest.mark.parametrize("form", ["markdown", "latex", "csv", "json"])
def test_every_format_renders(form: str) -> None:
    lines = [coherence("diffprune", [[1.0, 0]] * 4), landscape("diffprune", 0, (0.0, 1.0, 0.0, 1.0, 0.0)),
             noise("removal", (1.0, 0.5))]  # fmt: skip
    assert len(probes.sections(lines)) == 3
    assert all(render(section, form) for section in probes.sections(lines))
