"""The efficiency table: medians, speed-ups, flags, and never two machines in one column."""

from typing import Any

import pytest
from made_records import make_profile

from dpbench.report import summary
from dpbench.report.figures import data
from dpbench.report.tables import efficiency
from dpbench.report.tables.table import DASH, Section

CPU = {"device": "cpu", "cpu": "a processor"}


def cells(section: Section, method: str) -> dict[str, str]:
    row = next(row for row in section.rows if row.cells[0].text == method and row.kind == "data")
    return {name: cell.text for name, cell in zip(section.columns, row.cells, strict=True)}


def test_times_are_medians_between_tenth_and_ninetieth_percentile() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", range(1, 12))])
    assert cells(section, "grid")["Encode (ms)"] == "6.00 [2.00-10.00]"
    row = section.frame.iloc[0]
    assert (row["Encode ms"], row["Encode p10 ms"], row["Encode p90 ms"]) == (6.0, 2.0, 10.0)


def test_a_single_repetition_has_no_interval() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", [1.5]), make_profile("none", "all", [9.0, 9.2])])
    assert cells(section, "grid")["Encode (ms)"] == "1.50 [-]"
    assert cells(section, "none")["Encode (ms)"] == "9.10 [9.02-9.18]"
    once = next(row for _, row in section.frame.iterrows() if row["Method"] == "grid")
    assert once["Encode ms"] == 1.5
    assert (once[["Encode p10 ms", "Encode p90 ms"]].isna()).all()


def test_units_are_converted_once() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", [1.0])])
    found = cells(section, "grid")
    assert (found["GFLOP"], found["Peak (MiB)"], found["KV (MiB)"]) == ("2.00", "3.0", "1.00")
    (large,) = efficiency.sections([make_profile("grid", "16", [1.0], stages_flops={"ttft": 2_130_000_000_000})])
    assert cells(large, "grid")["TFLOP"] == "2.13"


def test_speed_up_is_the_unpruned_time_over_the_rows() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", [2.0]), make_profile("none", "all", [9.0])])
    assert cells(section, "grid")["Speed-up"] == "4.50x"
    assert cells(section, "none")["Speed-up"] == "1.00x"


def test_without_the_unpruned_model_there_is_no_speed_up_and_a_note() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", [2.0])])
    assert "Speed-up" not in section.columns
    assert any(note == "No speed-up: none was not measured under these conditions." for note in section.notes)


def test_what_was_not_measured_has_no_column_and_is_never_zero() -> None:
    (section,) = efficiency.sections(
        [make_profile("grid", "16", [1.0], peak_bytes={}, kv_bytes_per_layer=(), stages_flops={})]
    )
    assert not {"Peak (MiB)", "KV (MiB)", "GFLOP", "Energy (J)"} & set(section.columns)
    assert section.frame["Peak bytes"].isna().all()


def test_energy_is_what_is_drawn_above_idle() -> None:
    spent = {"first_token": 3.0, "idle": 2.0, "idle_watts": 60.0}
    (section,) = efficiency.sections([make_profile("grid", "16", [1.0], joules=spent)])
    assert cells(section, "grid")["Energy (J)"] == "3.00"


def test_flops_alone_make_a_table_without_times() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", [], stages_ms={}, environment={})])
    assert section.columns == ("Method", "Loc.", "Tokens", "GFLOP", "Peak (MiB)", "KV (MiB)")
    assert "shapes alone" in section.heading
    assert not any("Milliseconds" in note for note in section.notes)


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": "cuda-graph"},
        {"batch_size": 2},
        {"image_hw": (336, 336)},
        {"num_images": 2},
        {"weights": "random"},
        {"num_text": 20},
        {"environment": {**CPU, "cpu": "another processor"}},
        {"environment": {**CPU, "versions": {"torch": "1"}}},
        {"environment": {**CPU, "dtype": "float16"}},
    ],
)
def test_different_conditions_never_share_a_table(changes: dict[str, Any]) -> None:
    found = efficiency.sections([make_profile("none", "all", [9.0]), make_profile("grid", "16", [1.0], **changes)])
    assert len(found) == 2
    assert "Speed-up" not in found[1].columns
    assert any(note.startswith("Shown apart from eager, a processor:") for note in found[1].notes)


def test_the_sentence_names_what_differs() -> None:
    other = {"environment": {**CPU, "cpu": "another processor", "dtype": "float32", "versions": {"torch": "2.14.1"}}}
    _, section = efficiency.sections([make_profile("none", "all", [9.0]), make_profile("grid", "16", [1.0], **other)])
    assert section.notes[-1].endswith(": cpu is another processor, there a processor.")


def test_the_momentary_clock_may_differ() -> None:
    same = [make_profile("grid", "16", [1.0], environment={**CPU, "gpu_clock_mhz": mhz}) for mhz in (1200, 1300)]
    assert len(efficiency.sections(same)) == 1


def test_the_newest_measurement_of_a_row_counts() -> None:
    (section,) = efficiency.sections([make_profile("grid", "16", [1.0]), make_profile("grid", "16", [5.0])])
    assert section.frame["TTFT ms"].tolist() == [5.0]


def test_flags_are_footnotes_and_one_sentence_tells_of_all_that_scatter() -> None:
    flags = [f"scatters: 90th over 10th percentile is {ratio}" for ratio in ("1.30", "1.71")]
    rows = [make_profile(name, "16", [1.0], flags=(flag,)) for name, flag in zip(("grid", "pool"), flags, strict=True)]
    (section,) = efficiency.sections([*rows, make_profile("random", "16", [1.0])])
    refs = {row.cells[0].text: row.cells[0].refs for row in section.rows if row.kind == "data"}
    assert refs == {"grid": ("a",), "pool": ("a",), "random": ()}
    assert section.notes[-1] == "a: scatters: 90th over 10th percentile is more than 1.1"
    assert section.frame["Flags"].dropna().tolist() == flags


def test_the_fastest_of_a_budget_is_marked() -> None:
    times = {"grid": 1.0, "random": 0.5, "fastv": 3.0, "pool": 2.0, "holov": 9.0}
    (section,) = efficiency.sections([make_profile(name, "16", [value]) for name, value in times.items()])
    at = section.columns.index("TTFT (ms)")
    found = {row.cells[0].text: row.cells[at].mark for row in section.rows if row.kind == "data"}
    assert found == {"grid": "", "random": "", "fastv": "second", "pool": "best", "holov": ""}


def test_a_row_that_overspends_has_a_group_of_its_own_and_no_mark() -> None:
    rows = [make_profile("none", "all", [9.0])]
    rows += [make_profile(name, "16", [value]) for name, value in {"fastv": 3.0, "tome": 2.0}.items()]
    rows.append(make_profile("dart", "16", [1.0], num_visual=17.0, visual_tokens_per_layer=(17, 17)))
    (section,) = efficiency.sections(rows)
    assert [row.cells[0].text for row in section.rows] == [
        "Unpruned", "none", "Keep 16", "fastv", "tome", "Read more than their budget: Keep 16", "dart",
    ]  # fmt: skip
    at = section.columns.index("TTFT (ms)")
    assert {row.cells[0].text: row.cells[at].mark for row in section.rows if row.cells[at].mark} == {"tome": "best"}


def test_a_sweep_has_no_speed_up() -> None:
    none = [make_profile("none", "all", [9.0], num_visual=float(size)) for size in (144, 288)]
    (section,) = efficiency.sections(none)
    assert len(section.frame) == 2
    assert any("several lengths" in note for note in section.notes)


def test_a_speed_up_is_over_the_unpruned_time_of_the_same_run() -> None:
    then, now = {"started": "2026-01-01T00:00:00+00:00"}, {"started": "2026-01-02T00:00:00+00:00"}
    old = [make_profile("none", "all", [9.0], **then), make_profile("grid", "16", [3.0], **then)]
    new = [make_profile("none", "all", [4.0], **now), make_profile("pool", "16", [2.0], **now)]
    for rows in (old + new, new + old):
        (section,) = efficiency.sections(rows)
        found = {name: cells(section, name) for name in ("none", "grid", "pool")}
        assert found["none"]["TTFT (ms)"].startswith("4.00")
        assert (found["grid"]["Speed-up"], found["pool"]["Speed-up"]) == ("3.00x", "2.00x")
        assert sum(row.cells[0].text == "none" for row in section.rows) == 1
        assert section.notes[-1] == "a: timed in an earlier run, begun 2026-01-01T00:00:00+00:00"
        assert {row.cells[0].text for row in section.rows if row.cells[0].refs} == {"grid"}
        (group,) = efficiency.groups(rows)
        assert group == [new[0], old[1], new[1]], "nothing that reads a group meets what was measured anew"


def test_a_run_without_its_unpruned_model_takes_no_other_ones() -> None:
    rows = [make_profile("none", "all", [9.0]), make_profile("grid", "16", [3.0], started="2026-01-02T00:00:00+00:00")]
    (section,) = efficiency.sections(rows)
    assert cells(section, "grid")["Speed-up"] == DASH


def test_the_sentence_compares_what_was_timed_in_turn() -> None:
    then, now = {"started": "2026-01-01T00:00:00+00:00"}, {"started": "2026-01-02T00:00:00+00:00"}
    rows = [make_profile("none", "all", [9.0], **now), make_profile("pool", "16", [3.0], **now)]
    (table,) = data.cost_tables([*rows, make_profile("grid", "16", [1.0], **then)])
    assert summary.cost_sentence(table).startswith(
        "pool @ 16 is the fastest to the first token, 3.0 ms against 9.0 ms unpruned (3.00 times as fast;"
    )
