"""Tables of probes against made-up records whose answers are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_probes import coherence, landscape, noise

from dpbench.errors import ConfigError
from dpbench.report import request, runs
from dpbench.report.request import Request
from dpbench.report.tables import probes
from dpbench.report.tables.probe_landscape import roughness
from dpbench.report.tables.render import render
from dpbench.report.tables.table import Section
from dpbench.report.terminal.short import blocks
from dpbench.storage import record


def cells(section: Section) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in section.rows if row.kind == "data"]


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
    assert section.frame.loc[0, ["Variant", "Cosine", "Loss after a step"]].tolist() == ["diffprune", 1.0, 1.5]
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


def test_a_folder_of_probes_is_a_run_and_its_tables_are_in_every_report(tmp_path: Path) -> None:
    lines = [coherence("diffprune", [[1.0, 0]] * 4), noise("removal", (1.0, 0.5))]
    for one in lines:
        record.append(tmp_path / "probe" / "probes.jsonl", one)
    assert runs.runs_under(tmp_path) == [tmp_path / "probe"]
    tables = request.sections(Request(), [tmp_path / "probe"])
    assert [table.name for table in tables] == ["coherence", "noise"]
    assert [block.section.heading for block in blocks([tmp_path / "probe"])] == [table.heading for table in tables]
    with pytest.raises(ConfigError, match="have nothing for Table 1"):
        request.sections(Request(table=1), [tmp_path / "probe"])
