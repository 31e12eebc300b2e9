"""Figures of probes: what is drawn are the records' numbers, and every text can be read."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_probes import SHARED, coherence, landscape, line, noise
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from text_boxes import LEAST_FONT, faults, lay_out, named_lines, texts, visible

from dpbench.probe import statistics
from dpbench.probe.settings import WAYS
from dpbench.report.figures import files, probe_patches, probes, scores
from dpbench.report.figures.colours import LOOKS
from dpbench.report.figures.probe_patches import Picture
from dpbench.storage import record
from dpbench.storage.record import Probe

SIZES = (0.01, 0.1)
FEW, MANY = ("diffprune", "gumbel-ste"), tuple(WAYS)


def set_to(made: Probe, step: int = 0, checkpoint: str | None = None, **setting: Any) -> Probe:
    shared = {**SHARED, "step_sizes": SIZES}
    changed = {**made.setting, **setting}
    return replace(made, setting=changed, shared=shared, step=step, checkpoint=checkpoint)


def gradients(number: int) -> list[list[float]]:
    rows: list[list[float]] = np.random.default_rng(number).normal(0.5, 1, (4, 6)).tolist()
    return rows


def made(ways: tuple[str, ...], keeps: tuple[int, ...], taus: tuple[float, ...]) -> Iterator[Probe]:
    """Yield records of every probe."""
    for number, way in enumerate(ways):
        after = (2.0, 2.2, 1.8, 1.9, 1.0 + number / 10, 1.4)
        for keep in keeps:
            for tau in taus:
                yield set_to(coherence(way, gradients(number), after), keep=keep, tau=tau)
            for direction in range(3):
                losses = tuple(np.random.default_rng([number, direction]).random(5))
                yield set_to(landscape(way, direction, losses), keep=keep)
            for row in range(3):
                setting = {"way": way, "keep": keep, "tau": 0.15, "range": 1.0, "map_row": row, "map_points": 3}
                yield set_to(line("landscape", setting, losses=tuple(number + row + np.arange(3.0))))
    yield set_to(noise("unpruned", (0.9, 1.0), None))
    for share in (0.25, 0.75):
        for chosen in ("random", "scorer"):
            yield set_to(noise("removal", (share, share / 2), share), scores=chosen)
            yield set_to(noise("mask", (share, share / 3), share), scores=chosen)
            for tau in (0.15, 1.5):
                yield set_to(noise("soft", (share, share / 4), share, tau), scores=chosen)


def draw(*lines: Probe) -> dict[str, Figure]:
    with files.style():
        return {name.removesuffix("-toy-llava"): figure for name, figure in probes.draw(lines)}


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(loc="left"): axes for axes in visible(figure)}


def ends(axes: Axes) -> list[np.ndarray]:
    """Return the low and high end of every whisker, by series."""
    whiskers = [each for each in axes.collections if isinstance(each, LineCollection)]
    return [np.array(each.get_segments())[..., 1] for each in whiskers]


@pytest.mark.parametrize(("ways", "keeps", "taus"), [(FEW, (16,), (0.15,)), (MANY, (16, 48), (0.15, 1.5))])
def test_every_text_can_be_read(ways: tuple[str, ...], keeps: tuple[int, ...], taus: tuple[float, ...]) -> None:
    with files.style():
        figures = dict(probes.draw(made(ways, keeps, taus)))
        for figure in figures.values():
            lay_out(figure)
    kinds = ("coherence", "coherence-step", "landscape", "landscape-steps", "landscape-map", "noise")
    assert set(figures) == {f"probe-{kind}-toy-llava" for kind in kinds}
    assert {name: faults(figure) for name, figure in figures.items()} == {name: [] for name in figures}
    for figure in figures.values():
        width, height = figure.get_size_inches()
        assert width in (scores.COLUMN, scores.PAGE)
        assert height <= 9
        assert min(text.get_fontsize() for text in texts(figure)) >= LEAST_FONT


def test_cosines_over_tau_are_the_records_with_their_intervals() -> None:
    rows = {tau: gradients(number) for number, tau in enumerate((1.5, 0.15))}
    lines = [set_to(coherence("diffprune", found), tau=tau) for tau, found in rows.items()]
    other = set_to(coherence("gumbel-ste", gradients(7)), keep=48)
    noise_only = set_to(coherence("diffprune", gradients(9)), sources="noise")
    drawn = panels(draw(*lines, other, noise_only)["probe-coherence"])
    assert set(drawn) == {"Keep 16", "Keep 48"}
    (found,) = named_lines(drawn["Keep 16"]).values()
    wanted = {tau: statistics.coherence(np.array(each) @ np.array(each).T) for tau, each in rows.items()}
    assert found.get_xydata() == pytest.approx(np.array([[tau, wanted[tau].value] for tau in (0.15, 1.5)]))
    assert ends(drawn["Keep 16"])[0] == pytest.approx(
        np.array([(wanted[tau].low, wanted[tau].high) for tau in (0.15, 1.5)])
    )
    assert drawn["Keep 16"].get_xscale() == "log"
    assert [line for line in drawn["Keep 48"].lines if set(line.get_ydata()) == {0}], "a line at 0"  # type: ignore[arg-type]
    assert set(named_lines(drawn["Keep 48"])) == {"gumbel-ste"}


def test_with_several_checkpoints_cosines_are_over_the_trainings_steps() -> None:
    lines = [set_to(coherence("diffprune", gradients(step)), step, f"a/steps/{step}") for step in (200, 0, 100)]
    elsewhere = set_to(coherence("diffprune", gradients(5)), 100, "b/steps/100")
    with files.style():
        drawn = [figure for _, figure in probes.draw([*lines, elsewhere])]
    training, other = (panels(figure) for figure in drawn)
    (found,) = named_lines(training["Keep 16, tau 0.15"]).values()
    grams = {step: np.array(gradients(step)) @ np.array(gradients(step)).T for step in (0, 100, 200)}
    wanted = [[step, statistics.mean_cosine(gram)] for step, gram in grams.items()]
    assert found.get_xydata() == pytest.approx(np.array(wanted))
    assert training["Keep 16, tau 0.15"].get_xlabel() == "training step"
    assert set(other) == {"Keep 16"}, "another training has its own figure"


def test_two_trained_scorers_in_one_folder_are_two_trainings() -> None:
    lines = [set_to(coherence("diffprune", gradients(at)), at, f"scorers/{name}") for name, at in (("a", 4), ("b", 9))]
    with files.style():
        drawn = [figure for _, figure in probes.draw(lines)]
    assert [list(panels(figure)) for figure in drawn] == [["Keep 16"]] * 2


def test_the_loss_after_a_step_begins_at_that_of_the_scorer_as_it_is() -> None:
    made_line = coherence("diffprune", gradients(0), (2.0, 2.4, 1.0, 1.2, 3.0, 3.8))
    last = set_to(made_line, 9, "a/steps/9")
    before = set_to(replace(made_line, values={**made_line.values, "after_step": (5.0,) * 6}), 1, "a/steps/1")
    (axes,) = panels(draw(before, last)["probe-coherence-step"]).values()
    (found,) = named_lines(axes).values()
    assert found.get_xydata() == pytest.approx(np.array([[0, 2.2], [1, 1.1], [10, 3.4]]))
    intervals = [statistics.mean_over(np.array(change)) for change in ([0, 0], [-1.0, -1.2], [1.0, 1.4])]
    assert ends(axes)[0] == pytest.approx(np.array([(2.2 + each.low, 2.2 + each.high) for each in intervals]))
    assert set(draw(set_to(coherence("diffprune", gradients(0))))) == {"probe-coherence"}, "nothing was stepped"


def test_lines_and_their_steps_are_those_of_the_largest_range() -> None:
    losses = [(1.0, 2.0, 4.0, 3.0, 3.0), (3.0, 2.0, 2.0, 5.0, 1.0)]
    lines = [set_to(landscape("diffprune", number, each)) for number, each in enumerate(losses)]
    narrow = set_to(landscape("diffprune", 0, (9.0,) * 5), range=0.05)
    figures = draw(*lines, narrow)
    (axes,) = panels(figures["probe-landscape"]).values()
    along = np.linspace(-1, 1, 5)
    *thin, mean = axes.lines
    for each, wanted in zip(thin, losses, strict=True):
        assert each.get_xydata() == pytest.approx(np.stack([along, wanted], 1))
    assert mean.get_xydata() == pytest.approx(np.stack([along, np.mean(losses, 0)], 1))
    assert mean.get_linewidth() > thin[0].get_linewidth()
    (axes,) = panels(figures["probe-landscape-steps"]).values()
    (steps,) = axes.patches
    values, edges, _ = steps.get_data()  # type: ignore[attr-defined]
    assert (list(values), list(edges)) == ([1, 2, 1, 0], list(along))
    assert set(axes.lines[0].get_ydata()) == {1.0}  # type: ignore[arg-type]


def test_all_steps_are_inside_the_panels() -> None:
    lines = [landscape("diffprune", 0, (0.0, 0.1) * 3), landscape("gumbel-ste", 0, (0.0, 9.0) * 3)]
    for axes in panels(draw(*map(set_to, lines))["probe-landscape-steps"]).values():
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] > 9


def test_maps_have_the_losses_in_the_same_colours_and_incomplete_ones_are_left_out() -> None:
    def row(way: str, number: int, losses: tuple[float, ...]) -> Probe:
        setting = {"way": way, "keep": 16, "tau": 0.15, "range": 1.0, "map_row": number, "map_points": 2}
        return set_to(line("landscape", setting, losses=losses))

    whole = [row("diffprune", 1, (2.0, 3.0)), row("diffprune", 0, (0.0, 1.0))]
    whole += [row("gumbel-ste", 0, (8.0, 9.0)), row("gumbel-ste", 1, (9.0, 8.0))]
    drawn = panels(draw(*whole, row("scale-gate", 0, (0.0, 99.0)))["probe-landscape-map"])
    assert set(drawn) - {""} == {"diffprune", "gumbel-ste"}
    filled = [drawn[name].collections[0] for name in ("diffprune", "gumbel-ste")]
    assert len({tuple(each.levels) for each in filled}) == 1  # type: ignore[attr-defined]
    assert filled[0].get_clim() == filled[1].get_clim()
    assert filled[0].levels[0] <= 0 < 9 <= filled[0].levels[-1] < 99  # type: ignore[attr-defined]
    assert [filled[0].zmin, filled[0].zmax, filled[1].zmin] == [0, 3, 8]  # type: ignore[attr-defined]
    assert draw(row("diffprune", 0, (1.0, 2.0))) == {}


def test_accuracy_is_drawn_over_the_share_kept_and_the_unpruned_models_across() -> None:
    drawn = panels(draw(*made((), (), ()))["probe-noise"])
    assert list(drawn) == ["Random scores", "The scorer's scores"]
    for axes in drawn.values():
        found = named_lines(axes)
        assert set(found) == {
            *("removal", "noise in their place", "soft weights, tau 0.15", "soft weights, tau 1.5", "unpruned"),
        }
        assert found["removal"].get_xydata() == pytest.approx(np.array([[25, 18.75], [75, 56.25]]))
        assert found["noise in their place"].get_ydata() == pytest.approx([100 / 6, 50])
        assert ends(axes)[0] == pytest.approx(np.array([(12.5, 25), (37.5, 75)]))
        assert set(found["unpruned"].get_ydata()) == {95.0}  # type: ignore[arg-type]
        assert axes.get_xlabel() == "visual tokens kept (%)"
        assert len({(to_hex(str(each.get_color())), each.get_marker()) for each in found.values()}) == 5


def test_counts_and_shares_never_share_an_axis_and_parts_that_are_missing_are_left_out() -> None:
    drawn = draw(set_to(noise("removal", (0.5, 0.7), 16)), set_to(noise("removal", (0.5, 0.7), 0.5)))["probe-noise"]
    counts, shares = visible(drawn)
    assert (counts.get_xlabel(), shares.get_xlabel()) == ("visual tokens kept", "visual tokens kept (%)")
    assert "unpruned" not in named_lines(counts)
    assert named_lines(counts)["removal"].get_xydata() == pytest.approx(np.array([[16, 60]]))
    assert draw(set_to(noise("unpruned", (0.9, 1.0), None))) == {}
    broken = replace(coherence("diffprune", gradients(0)), values={"gram": (float("nan"),) * 10, "losses": ()})
    assert set(draw(broken)) == {"probe-coherence"}


def test_every_way_has_a_look_of_its_own() -> None:
    assert set(WAYS) <= set(LOOKS)
    assert len({(LOOKS[name].colour, LOOKS[name].marker) for name in WAYS}) == len(WAYS)


def test_a_folder_of_probes_alone_has_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FORMATS", ("svg",))
    for each in made((), (), ()):
        record.append(tmp_path / "run" / "probes.jsonl", each)
    assert files.write([tmp_path / "run"], tmp_path / "out") == [tmp_path / "out" / "probe-noise-toy-llava.svg"]


@pytest.mark.parametrize("num", [1, 2])
def test_pictures_have_a_row_per_form_and_a_column_per_budget(num: int) -> None:
    keys = [(form, keep) for keep in (0.5, 0.25) for form in ("removal", "mask", "soft")]
    shown = {key: np.full((8, 8, 3), number / 10) for number, key in enumerate(keys)}
    one = Picture(np.zeros((8, 8, 3)), np.ones((8, 8, 3)), np.zeros((8, 8)), shown)
    with files.style():
        figure = probe_patches.draw([one] * num, "toy-llava, toy, random scores, soft weights at tau 1.5")
        lay_out(figure)
        assert faults(figure) == []
    assert min(text.get_fontsize() for text in texts(figure)) >= LEAST_FONT
    grid = np.array(visible(figure)).reshape(num, 3, 3)[-1]
    assert [[float(axes.images[0].get_array().flat[0]) for axes in row] for row in grid] == [
        [0.0, 0.0, 0.3],
        [1.0, 0.1, 0.4],
        [0.0, 0.2, 0.5],
    ]
    assert [axes.get_title() for axes in grid[0]] == ["", "keep 0.5", "keep 0.25"]
    assert [axes.get_ylabel() for axes in grid[:, 1]] == ["removed", "noise", "soft weights"]
