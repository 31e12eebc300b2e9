"""What a reader sees of the figures, few methods or thirty: no text leaves the canvas, covers another, or the data."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from many_methods import THEIRS, methods, write_methods
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from text_boxes import LEAST_FONT, faults, lay_out, named_lines, texts

from dpbench.report.figures import costs, files, labels, scores
from dpbench.report.figures.colours import LOOKS, look, looks
from dpbench.report.figures.data import Point


@pytest.fixture(scope="module", params=[3, pytest.param(18, marks=pytest.mark.slow), 30])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Figure]]:
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch, files.style():
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        figures = files.draw([write_methods(folder / "run", request.param)])
        for figure in figures.values():
            lay_out(figure)
        yield figures


def test_no_text_leaves_the_canvas_or_covers_another_or_the_data(drawn: dict[str, Figure]) -> None:
    assert {name.split("-toy")[0] for name in drawn} == {
        "retention", "benchmarks", "pareto-ttft", "pareto-gflop", "ttft", "sweep-ttft", "sweep-peak",
    }  # fmt: skip
    assert {name: faults(figure) for name, figure in drawn.items()} == {name: [] for name in drawn}


def test_every_figure_fits_a_column_or_a_page_and_can_be_read_there(drawn: dict[str, Figure]) -> None:
    for name, figure in drawn.items():
        width, height = figure.get_size_inches()
        assert width in (scores.COLUMN, scores.PAGE), name
        assert height <= 9, name
        assert min(text.get_fontsize() for text in texts(figure)) >= LEAST_FONT, name


def test_every_method_is_named_and_no_two_look_the_same(drawn: dict[str, Figure]) -> None:
    for name in ("retention-toy-llava", "pareto-ttft-toy-llava", "sweep-ttft-toy-llava"):
        (axes,) = drawn[name].axes
        lines = named_lines(axes)
        styles = [
            (to_hex(str(line.get_color())), line.get_marker(), str(line.get_markerfacecolor()))
            for line in lines.values()
        ]
        assert len(set(styles)) == len(styles)
        assert set(lines) <= {text.get_text() for text in axes.texts}


def test_labels_stand_in_the_order_of_their_lines(drawn: dict[str, Figure]) -> None:
    (axes,) = drawn["retention-toy-llava"].axes
    last = {name: line.get_ydata()[-1] for name, line in named_lines(axes).items()}  # type: ignore[index]
    places = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_text() in last}
    names = sorted(places, key=lambda name: places[name])
    assert all(last[low] <= last[high] for low, high in pairwise(names))


def test_places_are_the_wanted_ones_where_they_fit_and_else_as_close_as_can_be() -> None:
    assert labels.spread([3, 1, 2], 1, 10) == [3, 1, 2]
    assert labels.spread([5, 5], 1, 10) == [4.5, 5.5]
    assert labels.spread([0, 0, 9.9], 1, 10) == [0, 1, 9.9]
    assert labels.spread([10, 10, 9], 1, 10) == [9, 10, 8]
    assert labels.spread([], 1, 10) == []


def test_few_methods_have_bands_and_many_a_sentence_on_their_intervals() -> None:
    def points(count: int) -> list[Point]:
        return [
            Point(name, name, at, 50 + at, 50 + at - width, 50 + at + width)
            for number, name in enumerate(methods(count)[1:])
            for at, width in ((10.0, 2.0), (20.0, 4.0 + number / 10))
        ]

    (few,) = scores.retention(points(4)).axes
    assert len(few.collections) == 3
    assert few.get_title(loc="left") == ""
    (many,) = scores.retention(points(18)).axes
    assert len(many.collections) == 0
    assert many.get_title(loc="left") == "95 % intervals: ± 2.0 to 5.6, median 3.0"


def test_the_unpruned_model_is_a_line_across_a_sweep(drawn: dict[str, Figure]) -> None:
    (axes,) = drawn["sweep-ttft-toy-llava"].axes
    (flat,) = [line for line in axes.lines if set(line.get_ydata()) == {30.0}]  # type: ignore[arg-type]
    assert flat.get_linestyle() == ":"
    highest = max(max(line.get_ydata()) for line in (flat, *named_lines(axes).values()))  # type: ignore[arg-type]
    assert axes.get_ylim() == (0, pytest.approx(1.06 * highest))
    assert "unpruned" in {text.get_text() for text in axes.texts}


def test_a_third_party_method_has_its_own_look_in_every_figure() -> None:
    both = looks({"theirs-1": "theirs-1", "holov": "holov"})
    assert both == {"theirs-1": look("theirs-1"), "holov": LOOKS["holov"]}
    assert {look(name).marker for name in THEIRS} & {
        each.marker for each in LOOKS.values() if look("x").filled
    } == set()
    many = looks({f"m{number}": f"m{number}" for number in range(100)})
    assert len(set(many.values())) == 100
    twice = looks({"divprune": "divprune", "divprune (scale=2)": "divprune"})
    assert twice["divprune"] == LOOKS["divprune"] != twice["divprune (scale=2)"]


def test_a_long_heading_is_wrapped_inside_a_column() -> None:
    points = [Point("grid", "grid", at, at) for at in (10.0, 20.0)]
    heading = "llava-1.5, torch.compile with CUDA graphs, batch size 16, on NVIDIA H200 141GB HBM3 of a shared machine"
    with files.style():
        figure = costs.sweep(points, "ttft_ms", costs.CostTable("llava-1.5", heading, ()))
        lay_out(figure)
        assert faults(figure) == []
