"""Figures: the numbers drawn are the records', colours hold for colour-blind readers, axes have units."""

import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from made_records import make_profile, make_record, write_run
from matplotlib import colormaps
from scipy.stats import t

from dpbench import registry
from dpbench.budget import BudgetRequest
from dpbench.cli import commands
from dpbench.errors import ConfigError
from dpbench.report import runs
from dpbench.report.figures import benchmarks, data, files
from dpbench.report.figures import costs as cost_figures
from dpbench.report.figures import scores as score_figures
from dpbench.report.figures.colours import LOOKS, PLOTLY_DASHES, PLOTLY_MARKERS, STAGES, look
from dpbench.report.figures.data import Point
from dpbench.report.intervals import Intervals
from dpbench.report.runs import Comparison
from dpbench.report.statistics import Difference
from dpbench.storage import record

# Linear RGB to what a dichromat sees (Machado, Oliveira and Fernandes 2009, severity 1).
BLINDNESS: Mapping[str, list[list[float]]] = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def lab(colour: str, seen: list[list[float]]) -> np.ndarray:
    """Return CIELAB of a colour as somebody sees it."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(seen) @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", BLINDNESS)
def test_methods_whose_colours_look_alike_have_other_markers(kind: str) -> None:
    seen = {name: lab(each.colour, BLINDNESS[kind]) for name, each in LOOKS.items()}
    alike = [(a, b) for a, b in combinations(LOOKS, 2) if np.linalg.norm(seen[a] - seen[b]) < 10]
    assert not [(a, b) for a, b in alike if LOOKS[a].marker == LOOKS[b].marker]


def test_every_installed_method_has_a_look_that_plotly_knows() -> None:
    assert set(registry.methods()) <= set(LOOKS)
    for each in (*LOOKS.values(), *map(look, ("theirs", "another", "third"))):
        assert each.marker in PLOTLY_MARKERS
        assert each.dash in PLOTLY_DASHES
    assert look("theirs") == look("theirs") != look("none")


def compared(folder: Path, *rows: record.Record) -> Comparison:
    write_run(folder, rows)
    return runs.comparisons([runs.load(folder)])[0]


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return compared(
        tmp_path,
        *(make_record("none", None, task, score) for task, score in (("pope", 80.0), ("gqa", 50.0))),
        *(make_record("grid", 16, task, score) for task, score in (("pope", 40.0), ("gqa", 45.0))),
        *(make_record("grid", 48, task, score) for task, score in (("pope", 80.0), ("gqa", 50.0))),
        make_record("holov", 16, "pope", 80.0),
    )


def test_retention_is_drawn_over_the_share_of_tokens_read(comparison: Comparison) -> None:
    points = {(each.label, each.budget): each for each in data.retention_points(comparison)}
    assert set(points) == {("none", "all"), ("grid", "16"), ("grid", "48")}  # holov lacks a benchmark
    assert points["grid", "16"].at == pytest.approx(100 * 16 / 144)
    assert points["grid", "16"].value == pytest.approx((50 + 90) / 2)


def test_a_band_is_the_interval_of_the_difference_to_the_unpruned_model(comparison: Comparison) -> None:
    row = comparison.find("grid", BudgetRequest(keep=16))
    assert row is not None
    found = Intervals(
        {
            (row, "none", "Retention"): Difference(-30, -35, -24, 0.001),
            (row, "random", "Retention"): Difference(1, 0, 2, 1),
        }
    )  # type: ignore[dict-item]
    assert found.of_retention() == {row: (65, 76)}
    (point,) = [p for p in data.retention_points(comparison, {row: (65.0, 76.0)}) if p.budget == "16"]
    assert (point.low, point.high) == (65, 76)


def test_the_lines_are_the_points(comparison: Comparison) -> None:
    points = data.retention_points(comparison)
    (axes,) = score_figures.retention(points).axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
    assert np.allclose(drawn["grid"], [[p.at, p.value] for p in points if p.label == "grid"][::-1])
    assert "%" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()


def test_a_map_has_the_scores_and_the_shares_as_colours(tmp_path: Path) -> None:
    rows = [
        make_record("none", None, task, score) for task, score in (("pope", 90.0), ("gqa", 60.0), ("mmbench_en", 26))
    ]
    rows += [
        make_record("grid", 16, task, score) for task, score in (("pope", 45.4), ("gqa", 60.0), ("mmbench_en", 25))
    ]
    figure = benchmarks.draw(compared(tmp_path, *rows, make_record("holov", 16, "pope", 90.0)))
    panel, bar = figure.axes
    assert panel.get_title(loc="left") == "Keep 16"
    assert [label.get_text() for label in panel.get_yticklabels()] == ["none", "grid", "holov"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["GQA", "MMB", "POPE"]
    found = {text.get_position(): text.get_text() for text in panel.texts}
    assert found == {
        **{(0, 0): "60", (1, 0): "26", (2, 0): "90"},
        **{(0, 1): "60", (1, 1): "25", (2, 1): "45"},
        **{(2, 2): "90"},
    }, "holov lacks two"
    colours = {(cell.get_x() + 0.5, cell.get_y() + 0.5): cell.get_facecolor()[:3] for cell in panel.patches}
    assert bar.get_xlim() == (pytest.approx(100 * 45.4 / 90), 100)
    assert colours[0, 1] == colours[2, 2] == colours[2, 0] == colormaps["GnBu"](1.0)[:3]
    assert colours[2, 1] == colormaps["GnBu"](0.0)[:3]
    assert colours[1, 0] == colours[1, 1] == (0.91, 0.91, 0.91), "at chance: MMB does not count"
    assert bar.get_xlabel() == "score (0-100); colour: % of the unpruned score; grey: does not count"


def test_the_front_holds_what_nothing_cheaper_reaches() -> None:
    costs = [(1, 10), (1, 40), (2, 30), (3, 60), (4, 60), (5, 59)]
    best = data.front(Point("m", "m", at, value) for at, value in costs)
    assert [(each.at, each.value) for each in best] == [(1, 40), (3, 60)]


def test_stages_of_a_bar_add_up_and_signals_are_taken_out_of_reduce() -> None:
    stages = {"encode": (5.0, 5.0), "signals": (1.0, 1.0), "reduce": (2.0, 2.0), "prefill": (4.0, 4.0)}
    stages |= {"ttft": (11.0, 11.0), "decode": (9.0, 9.0), "preprocess": (7.0, 7.0)}
    (table,) = data.cost_tables([make_profile("holov", "16", (1,), stages_ms=stages)])
    (cost,) = table.costs
    assert cost.stages_ms == {"encode": 5, "signals": 1, "reduce": 1, "prefill": 4}
    assert sum(cost.stages_ms.values()) == cost.ttft_ms
    assert set(cost.stages_ms) <= set(STAGES)
    assert (cost.gflop, cost.peak_mib) == (2, 3)


def test_times_of_two_machines_or_configurations_never_share_a_figure() -> None:
    other = {"device": "cuda", "gpu": "a GPU", "versions": {"torch": "2.14.1"}}
    several = [
        make_profile("none", "all", (2,)),
        make_profile("grid", "16", (1,)),
        make_profile("grid", "16", (1,), environment=other),
        make_profile("grid", "16", (1,), configuration="compile"),
    ]
    assert [len(table.costs) for table in data.cost_tables(several)] == [2, 1, 1]


def test_retention_meets_the_cost_of_the_same_method_and_budget(comparison: Comparison) -> None:
    (table,) = data.cost_tables([make_profile("none", "all", (8,)), make_profile("grid", "16", (3,))])
    points = data.against_cost(comparison, table, "ttft_ms")
    assert [(p.label, p.budget, p.at, p.value) for p in points] == [("none", "all", 8, 100), ("grid", "16", 3, 70)]
    (elsewhere,) = data.cost_tables([make_profile("grid", "16", (3,), backbone="llava-1.5")])
    assert data.against_cost(comparison, elsewhere, "ttft_ms") == []


def test_scores_over_the_pruning_rate_per_model() -> None:
    rows = []
    for backbone, top in (("qwen2.5-vl-3b", 60.0), ("qwen2.5-vl", 70.0)):
        rows.append(make_record("none", None, "mme", top, backbone=backbone))
        rows += [
            make_record("diffprune", None, "mme", top - 40 * rate, backbone=backbone, prune_rate=rate)
            for rate in (0.5, 0.75)
        ]
        rows.append(make_record("random", None, "mme", 1.0, backbone=backbone, prune_rate=0.5))
    curves = data.scale_points(rows, "diffprune")
    assert [(p.at, p.value) for p in curves["mme"]["qwen2.5-vl"]] == [(0, 70), (50, 50), (75, 40)]
    figure = score_figures.scale(curves, "diffprune")
    assert {line.get_label() for line in figure.axes[0].lines} == {"qwen2.5-vl", "qwen2.5-vl-3b"}
    assert "%" in figure.axes[0].get_xlabel()


def test_the_ablation_has_students_interval_over_trainings(tmp_path: Path) -> None:
    names = {"diffprune": (80.0, 90.0, 100.0), "scale-gate": (60.0, 60.0, 60.0)}
    rows = [
        make_record("diffprune", 16, "pope", score, params={"checkpoint": f"scorers/{variant}-{seed}"})
        for variant, scores in names.items()
        for seed, score in enumerate(scores)
    ]
    points = {
        p.label: p for p in data.variant_points(compared(tmp_path, make_record("none", None, "pope", 100.0), *rows))
    }
    half = t.ppf(0.975, 2) * 10 / 3**0.5
    low, high = points["diffprune"].low, points["diffprune"].high
    assert low is not None
    assert high is not None
    assert (points["diffprune"].value, low, high) == pytest.approx((90, 90 - half, 90 + half))
    (axes,) = score_figures.ablation(list(points.values())).axes
    assert sorted(bar.get_height() for bars in axes.containers for bar in bars) == [60, 90]


def test_every_quantity_of_a_cost_has_an_axis_with_its_unit() -> None:
    assert "ms" in cost_figures.AXES["ttft_ms"]
    assert "GFLOP" in cost_figures.AXES["gflop"]
    assert "MiB" in cost_figures.AXES["peak_mib"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_run(folder, [make_record("none", None, "pope", 80.0), make_record("grid", 16, "pope", 40.0)])
    lines = [
        make_profile("none", "all", (8,)),
        make_profile("grid", "16", (3,)),
        make_profile("grid", "32", (4,), num_visual=32.0),
    ]
    for each in lines:
        record.append(folder / "profile.jsonl", each)
    return folder


def test_figures_are_files_in_three_formats_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    first, second = (files.write([folder], tmp_path / name) for name in ("a", "b"))
    stems = ("retention", "benchmarks", "pareto-ttft", "pareto-gflop", "ttft", "sweep-ttft", "sweep-peak")
    assert {path.name for path in first} == {f"{stem}-toy-llava.{form}" for stem in stems for form in files.FORMATS}
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_command_writes_figures(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "drawn"
    monkeypatch.setattr(files, "FORMATS", ("png",))
    monkeypatch.setattr(sys, "argv", ["dpbench", "report", str(folder), "--figures", str(out)])
    with pytest.raises(SystemExit) as done:
        commands.main()
    assert not done.value.code
    assert (out / "retention-toy-llava.png").is_file()


def test_figures_without_numbers_or_over_a_file_are_one_sentence(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        files.write([folder], tmp_path / "taken")
    record.append(tmp_path / "bare" / "profile.jsonl", make_profile("none", "all", (), stages_ms={}, peak_bytes={}))
    with pytest.raises(ConfigError, match="nothing to draw"):
        files.write([tmp_path / "bare"], tmp_path / "out")
