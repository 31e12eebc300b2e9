"""Golden vectors through the contract: whatever differs, is missing or cannot be used is a failure."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dpbench_baselines import holov, prunesid
from dpbench_baselines.fastv import FastV
from dpbench_baselines.pyramiddrop import PyramidDrop

from dpbench import registry
from dpbench.conformance.vectors import run
from dpbench.errors import MissingError
from dpbench.method import Budget, Cut, LayerView, Method, Reduction

GOLDENS = Path(__file__).parents[1] / "goldens"
COUNTS = {"fastv": 8, "pyramiddrop": 8, "holov": 13, "prunesid": 10, "visionzip": 6, "hired": 5, "divprune": 5}
COUNTS |= {"dart": 4, "sparsevlm": 5, "cdpruner": 2}
PATHS = {path.stem: path for name in COUNTS for path in sorted(GOLDENS.glob(f"{name}_*.npz"))}

ROW, ONE_LAYER, GROUPED, FAST = (
    f"fastv_public_0{name}" for name in ("2_attn_576_r75", "4_layer_mha_fp32", "5_layer_gqa_fp32", "8_e2e_k3_r50")
)
STAGE, BATCH, PYRAMID = (
    f"pyramiddrop_public_0{name}" for name in ("2_stage1_576", "6_batch2_right_padded", "8_e2e_layers_1_4")
)

pytestmark = pytest.mark.usefixtures("one_thread")
SCORING = ("hidden", "ln_weight", "q_weight", "k_weight", "rope_theta", "image_start")
BETWEEN = ("q_rope_last", "k_rope", "attn_row", "position_ids", "keep_visual", "keep_positions")
WHOLE = ("inputs_embeds", "w.lm_head.weight", "w.model.layers.5.self_attn.q_proj.weight", "image_start", "n_visual")
ANSWER = ("new_tokens", "logits", "kv_lengths_after_prefill")
READ = {
    ROW: ("attn_row", "image_start", "n_visual", "keep_visual", "keep_positions"),
    GROUPED: (*SCORING, *BETWEEN, "n_visual"),
    FAST: (*WHOLE, *ANSWER, "keep_positions"),
    STAGE: (*SCORING, *BETWEEN, "n_visual_original", "n_visual_current", "stage", "new_position_ids"),
    BATCH: (*SCORING, "attention_mask", "lengths", "n_visual_original", "keep_visual_0", "keep_positions_1"),
    PYRAMID: (*WHOLE, *ANSWER, "keep_positions_stage0", "new_position_ids_stage0", "keep_positions_stage1"),
    "holov_public_12": ("features", "attn", "keep", "kept_idx"),
    "prunesid_public_01": ("hidden", "cls_attn", "need_token_num", "kept_ids"),
    "prunesid_public_03": ("seed",),
    "prunesid_public_07": ("next_order_crop", "next_order_id", "kept_ids"),
    "prunesid_public_09": ("hidden", "need_effective", "seed", "kept_ids"),
}
"""Arrays that decide or are decided, in a vector of each kind."""
STATED = {
    ROW: ("r",),
    FAST: ("k", "r"),
    STAGE: ("ratios",),
    PYRAMID: ("layer_list", "ratios"),
    "holov_public_05": ("num_crops",),
}
"""Hyper-parameters, likewise."""


def pairs(*tables: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(stem, name) for table in tables for stem, names in table.items() for name in names]


def load_method(stem: str) -> Method:
    return registry.load(stem.split("_")[0])


def load_arrays(stem: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(PATHS[stem]) as stored:
        return {name: stored[name] for name in stored.files}


def change_content(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of the same kind with other content."""
    if array.ndim == 0:
        return np.asarray(array + 1 + array // 10 if array.dtype.kind == "i" else array * 0.8)
    return array + 1 if (array == np.flip(array)).all() else np.flip(array)


def save_vector(folder: Path, arrays: dict[str, Any]) -> Path:
    path = folder / "vector.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("stem", PATHS)
def test_every_public_vector_passes(stem: str) -> None:
    result = run.check(load_method(stem), PATHS[stem])
    assert result.passed, result.detail
    assert result.detail == ""
    assert result.path == PATHS[stem]


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_methods_vectors_are_found_by_its_name(name: str, count: int) -> None:
    paths = run.find(name, GOLDENS)
    assert len(paths) == count
    assert paths == sorted(paths)


def test_a_folder_without_vectors_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MissingError, match=r"no file fastv_\*\.npz"):
            run.find("fastv", folder)


@pytest.mark.parametrize(("stem", "name"), pairs(READ, STATED))
def test_an_array_with_other_content_is_a_failure(stem: str, name: str, tmp_path: Path) -> None:
    arrays = load_arrays(stem)
    path = save_vector(tmp_path, arrays | {name: change_content(arrays[name])})
    assert not run.check(load_method(stem), path).passed


@pytest.mark.parametrize(("stem", "name"), pairs(READ))
def test_a_missing_array_is_a_failure_that_names_it(stem: str, name: str, tmp_path: Path) -> None:
    arrays = load_arrays(stem)
    del arrays[name]
    result = run.check(load_method(stem), save_vector(tmp_path, arrays))
    assert not result.passed
    assert name.removeprefix("w.") in result.detail


@pytest.mark.parametrize(("stem", "name"), pairs(STATED))
def test_a_hyper_parameter_that_is_missing_is_not_guessed_from_the_answer(stem: str, name: str, tmp_path: Path) -> None:
    arrays = load_arrays(stem)
    del arrays[name]
    assert not run.check(load_method(stem), save_vector(tmp_path, arrays)).passed


def test_logits_are_held_to_a_hundred_thousandth_of_their_scale(tmp_path: Path) -> None:
    arrays = load_arrays(FAST)
    scale = abs(arrays["logits"]).max()
    for step in range(len(arrays["logits"])):
        for share, passes in ((2e-6, True), (2e-5, False)):
            logits = arrays["logits"].copy()
            logits[step, 7] += share * scale
            result = run.check(FastV(), save_vector(tmp_path, arrays | {"logits": logits}))
            assert result.passed == passes, result.detail


def save(**arrays: Any) -> Callable[[Path], Any]:
    return lambda path: np.savez(path, **arrays)


def save_one(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(lambda path: None, "not an .npz file", id="absent"),
        pytest.param(lambda path: path.write_text("kind"), "not an .npz file", id="text"),
        pytest.param(lambda path: path.write_bytes(b""), "not an .npz file", id="empty"),
        pytest.param(
            lambda path: path.write_bytes(PATHS[FAST].read_bytes()[:5000]), "not an .npz file", id="cut short"
        ),
        pytest.param(save_one, "not an .npz file", id="a single array"),
        pytest.param(save(kind=np.array([{}], dtype=object)), "not an .npz file", id="pickled"),
        pytest.param(save(r=0.5), "lacks the array 'kind'", id="without kind"),
        pytest.param(save(kind="stages"), "did you mean 'stage'", id="unknown kind"),
        pytest.param(save(kind="random", variant="blip"), "variant 'blip'", id="unknown variant"),
        pytest.param(save(kind="random", variant="llava"), "neither 'features'", id="without tokens"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_failure_with_a_sentence(
    write: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "vector.npz"
    write(path)
    result = run.check(FastV(), path)
    assert not result.passed
    assert message in result.detail
    assert "\n" not in result.detail


@pytest.mark.parametrize("name", [*COUNTS, "none", "random", "grid"])
@pytest.mark.parametrize("stem", [ROW, ONE_LAYER, FAST, STAGE, BATCH, PYRAMID, "holov_public_05", "prunesid_public_03"])
def test_no_method_passes_the_vectors_of_another(stem: str, name: str) -> None:
    result = run.check(registry.load(name), PATHS[stem])
    assert result.passed == stem.startswith(name)


def test_a_missing_parameter_is_named_in_the_detail() -> None:
    assert "needs PyramidDrop to have a parameter 'layer'" in run.check(PyramidDrop(), PATHS[FAST]).detail


@pytest.mark.parametrize(
    ("owner", "function", "stem"),
    [
        *((FastV, "rank", stem) for stem in (ROW, ONE_LAYER, FAST)),
        *((FastV, "cuts", stem) for stem in (ROW, ONE_LAYER, FAST)),
        *((PyramidDrop, "rank", stem) for stem in (STAGE, BATCH, PYRAMID)),
        *((PyramidDrop, "cuts", stem) for stem in (STAGE, BATCH, PYRAMID)),
        (holov, "fill_quotas", "holov_public_05"),
        (holov, "similarity_variance", "holov_public_09"),
        (prunesid, "fill_budgets", "prunesid_public_03"),
        (prunesid, "suppress_similar", "prunesid_public_09"),
    ],
)
def test_there_is_no_second_path_to_a_selection(
    owner: Any, function: str, stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(owner, function, fail)
    result = run.check(load_method(stem), PATHS[stem])
    assert not result.passed
    assert result.detail == "RuntimeError: planted"
    assert result.kind != "?"


@dataclass(frozen=True, kw_only=True)
class RankingLate(FastV):
    """The attention of the layer about to run in place of the one before."""

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        return tuple(Cut(cut.layer, cut.keep, cut.layer) for cut in super().cuts(num_visual, num_layers, budget))


@dataclass(frozen=True, kw_only=True)
class RankingEarly(PyramidDrop):
    """The attention of the layer before in place of the one about to run."""

    def cuts(self, num_visual: int, num_layers: int, budget: Budget) -> tuple[Cut, ...]:
        return tuple(Cut(cut.layer, cut.keep, cut.layer - 1) for cut in super().cuts(num_visual, num_layers, budget))


@dataclass(frozen=True, kw_only=True)
class ByScore(FastV):
    """Survivors in the order of their scores."""

    def select(self, view: LayerView) -> Reduction:
        return Reduction(self.rank(view).topk(view.cut.keep).indices)


@dataclass(frozen=True, kw_only=True)
class FirstHead(PyramidDrop):
    """One head in place of the mean."""

    def rank(self, view: LayerView) -> torch.Tensor:
        return view.attention()[0, 0][view.visual_index_N]


@pytest.mark.parametrize(
    ("method", "stems"),
    [
        (RankingLate(), (ROW, ONE_LAYER, FAST)),
        (RankingEarly(), (STAGE, BATCH, PYRAMID)),
        (ByScore(), (ROW, ONE_LAYER)),
        (FirstHead(), (STAGE, BATCH, PYRAMID)),
        (FastV(positions="compact"), (FAST,)),
        (PyramidDrop(positions="original"), (STAGE, BATCH, PYRAMID)),
    ],
)
def test_a_method_with_a_flaw_fails(method: Method, stems: tuple[str, ...]) -> None:
    for stem in stems:
        assert not run.check(method, PATHS[stem]).passed


def test_checking_leaves_the_global_generator_unchanged() -> None:
    before = torch.random.get_rng_state()
    for stem in READ:
        run.check(load_method(stem), PATHS[stem])
    assert torch.equal(torch.random.get_rng_state(), before)
