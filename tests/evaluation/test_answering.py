"""Answering: an image is read once for all cells, batched answers equal those of batch 1, failures are recorded."""

import shutil
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from places import TOY_DATA
from rich.console import Console
from safetensors.torch import load_file, save_file

from dpbench import backbones
from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone
from dpbench.engine import encoding, pruned_prompt
from dpbench.engine.answers import split_into_batches
from dpbench.engine.context import count_positions
from dpbench.engine.encoding import Encoder
from dpbench.engine.feature_cache import FeatureCache
from dpbench.evaluation import answering, runner
from dpbench.evaluation.failed_cells import FailedCells
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest
from dpbench.method import Method, Reduction, VisualTokens
from dpbench.storage.journal import Answer
from dpbench.tasks import lmms_eval_adapter, lmms_eval_scores
from dpbench.tasks.lmms_eval_adapter import BuiltTask


def cell(method: str, keep: int | None, task: str) -> Cell:
    given: dict[str, Any] = {"name": "x", "backbone": "toy-llava", "methods": [method], "tasks": [task]}
    return next(cells(make_manifest(given | ({"budgets": {"keep": [keep]}} if keep else {}), source="test")))


def answered(
    backbone: Backbone,
    built: BuiltTask,
    folder: Path,
    methods: dict[str, int | None],
    *,
    batch_size: int = 32,
    cache: int = 1 << 30,
) -> dict[str, list[Answer]]:
    """Answer a task under several methods and return their journals, in the order of the requests."""
    kept = FeatureCache(cache)
    active = [
        answering.open_cell(cell(name, keep, built.name), backbone, folder, kept) for name, keep in methods.items()
    ]
    with closing(Encoder(backbone, built, kept, answering.needs_of(backbone, active))) as encoder:
        for _ in answering.answer(backbone, active, built, built.requests, batch_size, encoder):
            pass
    order = [(request.task, request.doc_id, request.prompt_hash) for request in built.requests]
    return {run.cell.method: [run.journal.answers[key] for key in order] for run in active}


@pytest.fixture(scope="module")
def toy() -> Backbone:
    return backbones.load("toy-llava")


@pytest.fixture(scope="module")
def asked() -> BuiltTask:
    """Prompts of different lengths about three images, with different limits on the answers' lengths."""
    built = lmms_eval_adapter.build("mmbench_en", TOY_DATA, limit=12)
    limits = [1, 3, 16]
    requests = [replace(each, max_new_tokens=limits[n % 3]) for n, each in enumerate(built.requests)]
    requests[1] = replace(requests[1], text=f"Look closely. {requests[1].text}")
    return replace(built, requests=tuple(requests))


@pytest.fixture
def gqa() -> BuiltTask:
    return lmms_eval_adapter.build("gqa", TOY_DATA, limit=10)


@pytest.fixture
def vizwiz() -> BuiltTask:
    """One question an image."""
    return lmms_eval_adapter.build("vizwiz", TOY_DATA, limit=8)


def images_of(built: BuiltTask) -> int:
    return len({built.image_group(each) for each in built.requests})


@pytest.mark.parametrize(("method", "keep"), [("none", None), ("fastv", 40), ("holov", 16), ("pyramiddrop", 60)])
def test_batched_answers_equal_batch_1(
    toy: Backbone, asked: BuiltTask, tmp_path: Path, method: str, keep: int | None
) -> None:
    assert len({len(each.text) for each in asked.requests}) > 1
    batched = answered(toy, asked, tmp_path / "all", {method: keep})[method]
    alone = answered(toy, asked, tmp_path / "one", {method: keep}, batch_size=1)[method]
    assert [(each.answer, each.kept) for each in batched] == [(each.answer, each.kept) for each in alone]
    assert len({each.answer for each in batched}) > 1


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Record what is decoded, processed and encoded."""
    seen: dict[str, list[Any]] = {"decoded": [], "processed": [], "encoded": []}
    backbone = type(miniatures.backbone("llava"))
    real_images, real_preprocess, real_encode = BuiltTask.images, backbone.preprocess, backbone.encode

    def images(self: BuiltTask, request: Any) -> Any:
        seen["decoded"].append(self.image_group(request))
        return real_images(self, request)

    def preprocess(self: Any, images: Any, grids: Any = None) -> Any:
        seen["processed"] += [grids[0] if grids else None] * len(images)
        return real_preprocess(self, images, grids)

    def encode(self: Any, pixels: Any, needs: Any = frozenset()) -> Any:
        seen["encoded"] += [tuple(each.values.shape) for each in pixels]
        return real_encode(self, pixels, needs)

    monkeypatch.setattr(BuiltTask, "images", images)
    monkeypatch.setattr(backbone, "preprocess", preprocess)
    monkeypatch.setattr(backbone, "encode", encode)
    return seen


METHODS = {"none": None, "random": 9, "holov": 16, "fastv": 72}


@pytest.mark.parametrize("batch_size", [32, 3])
def test_an_image_is_read_once_for_all_questions_and_methods(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, work: dict[str, list[Any]], batch_size: int
) -> None:
    known = answered(tiny, gqa, tmp_path, METHODS, batch_size=batch_size)
    num = images_of(gqa)
    assert num < len(gqa.requests)
    assert [len(work[what]) for what in ("decoded", "processed", "encoded")] == [num] * 3
    journals = [each for answers in known.values() for each in answers]
    assert sum(each.encoded for each in journals) == num
    assert sum(each.cache_hits for each in journals) == len(METHODS) * len(gqa.requests) - num


def test_a_smaller_image_is_another_image(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, work: dict[str, list[Any]]
) -> None:
    answered(tiny, gqa, tmp_path, {"none": None, "downsample": 16})
    num = images_of(gqa)
    assert len(work["decoded"]) == num
    assert sorted(work["processed"], key=str) == sorted([None] * num + [(4, 4)] * num, key=str)


def test_without_a_cache_the_answers_are_the_same(tiny: Backbone, gqa: BuiltTask, tmp_path: Path) -> None:
    with_cache = answered(tiny, gqa, tmp_path / "with", METHODS)
    without = answered(tiny, gqa, tmp_path / "without", METHODS, cache=0)
    for method, answers in with_cache.items():
        assert [each.answer for each in answers] == [each.answer for each in without[method]]
    assert sum(each.encoded for each in without["none"]) == images_of(gqa)
    assert all(sum(each.encoded for each in answers) == images_of(gqa) for answers in without.values())


@pytest.mark.parametrize("name", ["gqa", "pope", "seedbench"])
def test_grouping_decodes_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    built = lmms_eval_adapter.build(name, TOY_DATA, limit=12)
    truth = [built.images(each)[0].tobytes() for each in built.requests]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    groups = [built.image_group(each) for each in built.requests]
    for n, one in enumerate(groups):
        assert [one == other for other in groups] == [truth[n] == other for other in truth]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize(("count", "mode"), [(0, "RGB"), (1, "RGB"), (2, "RGB"), (2, "L"), (2, "RGBA"), (1, "P")])
def test_a_prompt_is_what_the_processor_makes_of_images_and_text_at_once(family: str, count: int, mode: str) -> None:
    backbone = miniatures.backbone(family)
    images = [Image.effect_noise((70, 40), 99), Image.effect_noise((40, 90), 99)][:count]
    images = [each.convert("RGB").convert(mode) for each in images]
    found, chat = backbone.prompt(images, "What?"), backbone.chat(count, "What?")
    wanted = backbone.processor(images=images or None, text=[chat], return_tensors="pt")
    assert torch.equal(found.ids_L, wanted["input_ids"][0])
    assert [stop - start for start, stop in found.spans] == [each.rows for each in found.pixels]
    assert all((found.ids_L[start:stop] == backbone.image_id).all() for start, stop in found.spans)
    values, sizes = [each.values for each in found.pixels], [list(each.size) for each in found.pixels]
    if family != "llava" and count:
        assert sizes == wanted["image_sizes" if family == "llava_next" else "image_grid_thw"].tolist()
    if family == "qwen2_5_vl" and count:
        assert torch.equal(torch.cat(values), wanted["pixel_values"])
    for mine, theirs in zip(values, wanted.get("pixel_values", ()) if family != "qwen2_5_vl" else (), strict=False):
        assert torch.equal(mine, theirs[: len(mine)])


class Preprocessing:
    """Records which thread preprocesses each image at its own size; can hold it there, or make it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
        self.threads: list[threading.Thread] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.has_begun = threading.Event()
        self.failure: Exception | None = None
        real = type(backbone).preprocess

        def preprocess(model: Any, images: Any, grids: Any = None) -> Any:
            if grids is None:
                self.threads.append(threading.current_thread())
                self.has_begun.set()
                assert self.may_go_on.wait(60)
                if self.failure:
                    raise self.failure
            return real(model, images, grids)

        monkeypatch.setattr(type(backbone), "preprocess", preprocess)


@pytest.fixture
def preprocessing(monkeypatch: pytest.MonkeyPatch, tiny: Backbone) -> Preprocessing:
    return Preprocessing(monkeypatch, tiny)


def test_images_of_the_next_batch_are_preprocessed_before_this_one_is_answered(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    kept = FeatureCache(1 << 30)
    active = [answering.open_cell(cell("none", None, "gqa"), tiny, tmp_path, kept)]
    first, second, *_ = split_into_batches(gqa, gqa.requests, 3)
    with closing(Encoder(tiny, gqa, kept, frozenset())) as encoder:
        answers = answering.answer(tiny, active, gqa, gqa.requests, 3, encoder)
        next(answers)
        encoder.start_batch(second, [])  # waits for what was begun for the second batch
        assert len(preprocessing.threads) == len({gqa.image_group(request) for request in (*first, *second)})
        assert not active[0].journal.answers, "the first batch is not answered yet"
    assert threading.main_thread() not in preprocessing.threads


def test_an_error_in_another_thread_fails_the_samples_that_read_the_image(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    preprocessing.failure = ZeroDivisionError("in a processor")
    kept, failed = FeatureCache(1 << 30), FailedCells(Console(quiet=True))
    active = [
        answering.open_cell(cell(method, keep, "gqa"), tiny, tmp_path, kept)
        for method, keep in (("none", None), ("downsample", 16))
    ]
    with closing(Encoder(tiny, gqa, kept, frozenset())) as encoder:
        assert list(answering.answer(tiny, active, gqa, gqa.requests, 3, encoder, failed))
    assert not failed.all
    failures = [{answer.failure for answer in run.journal.answers.values()} for run in active]
    assert failures == [{"ZeroDivisionError: in a processor"}, {None}]
    assert preprocessing.threads
    assert threading.main_thread() not in preprocessing.threads


class Odd:
    """A backbone of which one call raises for one image, or one prompt, and works for all others."""

    def __init__(self, backbone: Backbone, call: str, at: int) -> None:
        self.backbone, self.call, self.at, self.images = backbone, call, at, []  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def preprocess(self, images: Any, grids: Any = None) -> Any:
        made = self.backbone.preprocess(images, grids)
        self.images += [pixels.values for pixels in made]
        return made

    def encode(self, pixels: Any, needs: Any = frozenset()) -> Any:
        if self.call == "encode" and any(torch.equal(image.values, self.images[self.at]) for image in pixels):
            raise RuntimeError("one image is odd")
        return self.backbone.encode(pixels, needs)

    def tokenize(self, rows: Any, sizes: Any, text: str) -> Any:
        if self.call == "tokenize" and text == self.at:
            raise RuntimeError("one question is odd")
        return self.backbone.tokenize(rows, sizes, text)


def failures_of(run: answering.ActiveCell, built: BuiltTask) -> list[str | None]:
    order = [(request.task, request.doc_id, request.prompt_hash) for request in built.requests]
    return [run.journal.answers[key].failure for key in order]


def test_a_question_that_cannot_be_tokenised_costs_one_sample(tiny: Backbone, gqa: BuiltTask, tmp_path: Path) -> None:
    odd: Any = Odd(tiny, "tokenize", gqa.requests[1].text)  # type: ignore[arg-type]
    kept = FeatureCache(1 << 30)
    active = answering.open_cell(cell("none", None, "gqa"), tiny, tmp_path, kept)
    with closing(Encoder(odd, gqa, kept, frozenset())) as encoder:
        assert list(answering.answer(odd, [active], gqa, gqa.requests, 8, encoder))
    same = [request.text == gqa.requests[1].text for request in gqa.requests]
    assert failures_of(active, gqa) == ["RuntimeError: one question is odd" if is_odd else None for is_odd in same]


def test_an_image_that_cannot_be_encoded_costs_its_own_samples(tiny: Backbone, gqa: BuiltTask, tmp_path: Path) -> None:
    odd: Any = Odd(tiny, "encode", 0)
    kept = FeatureCache(1 << 30)
    active = answering.open_cell(cell("none", None, "gqa"), tiny, tmp_path, kept)
    with closing(Encoder(odd, gqa, kept, frozenset())) as encoder:
        assert list(answering.answer(odd, [active], gqa, gqa.requests, 8, encoder))
    failures = failures_of(active, gqa)
    odd_groups = {gqa.image_group(r) for r, failure in zip(gqa.requests, failures, strict=True) if failure}
    assert len(odd_groups) == 1
    assert [failure is not None for failure in failures] == [
        gqa.image_group(request) in odd_groups for request in gqa.requests
    ]
    assert None in failures


@dataclass(frozen=True, kw_only=True)
class OddOnce(Method):
    """Raises for some images, known by their embeddings."""

    odd: Any = ()

    def reduce(self, visual: VisualTokens, keep: int) -> Reduction:
        if any(torch.allclose(visual.embeds_ND, image) for image in self.odd):
            raise ZeroDivisionError("this image is odd")
        return Reduction(torch.arange(keep))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_sample_that_a_method_cannot_decide_costs_itself_and_many_cost_the_cell(
    batch_size: int, tiny: Backbone, vizwiz: BuiltTask, tmp_path: Path
) -> None:
    reason = "ZeroDivisionError: this image is odd"
    for odd, is_cell_failed in (([2], False), ([2, 5], True)):
        images = [tiny.encode(tiny.preprocess(vizwiz.images(vizwiz.requests[at])))[0].embeds_ND for at in odd]
        kept, failed = FeatureCache(1 << 30), FailedCells(Console(quiet=True))
        opened = answering.open_cell(cell("random", 5, "vizwiz"), tiny, tmp_path / str(len(odd)), kept)
        active = replace(opened, method=OddOnce(odd=images))
        with closing(Encoder(tiny, vizwiz, kept, frozenset())) as encoder:
            assert list(answering.answer(tiny, [active], vizwiz, vizwiz.requests, batch_size, encoder, failed))
        assert [failure.reason for failure in failed.all] == ([reason] if is_cell_failed else [])
        if not is_cell_failed:
            assert failures_of(active, vizwiz) == [reason if at in odd else None for at in range(8)]


@pytest.mark.parametrize("capacity", [0, 1 << 30])
def test_an_image_is_preprocessed_once_for_a_batch_whether_or_not_the_cache_keeps_it(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, capacity: int, preprocessing: Preprocessing
) -> None:
    kept = FeatureCache(capacity)
    active = answering.open_cell(cell("none", None, "gqa"), tiny, tmp_path, kept)
    first = next(iter(split_into_batches(gqa, gqa.requests, 3)))
    with closing(Encoder(tiny, gqa, kept, frozenset())) as encoder:
        encoder.start_batch(first, [])
        for _ in range(2):
            encoder.samples(first, active.method, active.rule)
    assert len(preprocessing.threads) == len({gqa.image_group(request) for request in first})


def test_a_closed_encoder_begins_with_no_further_image(
    tiny: Backbone, gqa: BuiltTask, monkeypatch: pytest.MonkeyPatch, preprocessing: Preprocessing
) -> None:
    monkeypatch.setattr(encoding, "THREADS", 1)
    preprocessing.may_go_on.clear()
    encoder = Encoder(tiny, gqa, FeatureCache(0), frozenset())
    encoder.start_batch([], gqa.requests)
    assert preprocessing.has_begun.wait(60)
    encoder.close()
    preprocessing.may_go_on.set()
    for thread in preprocessing.threads:
        thread.join(60)
    assert images_of(gqa) > 1
    assert len(preprocessing.threads) == 1


def test_a_broken_image_fails_its_questions_only(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, real = gqa.image_group(gqa.requests[0]), BuiltTask.images

    def images(self: BuiltTask, request: Any) -> Any:
        if self.image_group(request) == broken:
            raise SyntaxError("broken PNG file")
        return real(self, request)

    monkeypatch.setattr(BuiltTask, "images", images)
    for answers in answered(tiny, gqa, tmp_path, {"none": None, "downsample": 16}).values():
        for answer in answers:
            assert answer.failure == (
                "image could not be decoded: broken PNG file" if answer.image_group == broken else None
            )
            assert bool(answer.visual_tokens) == (answer.failure is None)


@pytest.mark.parametrize("family", miniatures.FAMILIES)
def test_a_prompt_that_does_not_fit_unpruned_is_asked_of_no_method(
    gqa: BuiltTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """Among them methods whose own prompt would fit: they keep few tokens, or read a small image."""
    backbone = miniatures.backbone(family)
    methods = {"none": None, "random": 4, "downsample": 9}
    groups = [gqa.image_group(each) for each in gqa.requests]
    alone = next(each for each, group in zip(gqa.requests, groups, strict=True) if groups.count(group) == 1)
    long = replace(alone, text=f"{alone.text} {alone.text}")
    built = replace(gqa, requests=tuple(long if each is alone else each for each in gqa.requests))
    lengths = [
        count_positions(backbone.prompt(gqa.images(each), each.text)) + each.max_new_tokens
        for each in gqa.requests
        if each is not alone
    ]
    roomy = answered(backbone, built, tmp_path / "roomy", methods)
    monkeypatch.setattr(backbone.decoder.config, "max_position_embeddings", max(lengths))
    encoded: list[Any] = []
    real = backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda pixels, needs=(): encoded.extend(pixels) or real(pixels, needs))
    for method, answers in answered(backbone, built, tmp_path / "tight", methods).items():
        assert [each.doc_id for each in answers if each.too_long] == [long.doc_id]
        for answer, before in zip(answers, roomy[method], strict=True):
            assert before.failure is None
            assert not before.too_long
            if not answer.too_long:
                assert (answer.answer, answer.kept) == (before.answer, before.kept)
                continue
            assert (answer.answer, answer.visual_tokens) == ("", ())
            assert answer.failure is not None
            assert answer.failure.endswith(f"16 for the answer, the model's context is {max(lengths)}")
    assert len(encoded) == 2 * (images_of(gqa) - 1), "the image that only this question is about is not encoded"


def test_what_does_not_fit_even_alone_fails_with_its_reason(
    tiny: Backbone, gqa: BuiltTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pruned_prompt.splice

    def splice(backbone: Any, method: Any, prompt: Any, *rest: Any) -> Any:
        if prompt.question == "hopeless":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(backbone, method, prompt, *rest)

    monkeypatch.setattr(pruned_prompt, "splice", splice)
    built = replace(gqa, requests=(replace(gqa.requests[0], text="hopeless"), *gqa.requests[1:]))
    answers = answered(tiny, built, tmp_path, {"none": None})["none"]
    assert [each.failure for each in answers] == ["out of memory at batch 1"] + [None] * (len(answers) - 1)


def test_every_reading_of_nothing_is_wrong() -> None:
    for name in ("gqa", "mmbench_en", "mme", "pope", "scienceqa", "vqav2", "textvqa", "seedbench", "vizwiz"):
        built = lmms_eval_adapter.build(name, TOY_DATA, limit=12)
        nothing = {(each.doc_id, each.text): "" for each in built.requests}
        assert lmms_eval_scores.percent(name, lmms_eval_scores.score(built, "nothing", nothing)) == 0, name


def test_a_cell_without_a_single_answer_has_no_score(tmp_path: Path) -> None:
    """Logits of NaN, as after an overflow of float16: no record with a score of 0."""
    folder = shutil.copytree(TOY_DATA.parent / "weights", tmp_path / "toy")
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("language_model.model.norm.weight"))
    save_file({**weights, name: weights[name] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    data = {"name": "x", "backbone": {"name": "toy-llava", "weights": str(folder)}, "methods": ["none"]}
    manifest = make_manifest(data | {"tasks": ["pope"], "protocol": {"limit": 4}}, source="test")
    outcome = runner.run(manifest, tmp_path, TOY_DATA, device="cpu", console=Console(quiet=True))
    assert (outcome.added, outcome.is_complete) == ((), False)
    (failed,) = outcome.failed
    assert failed.reason.startswith("task pope: none of the 4 samples could be answered, for instance: the logits are")
    assert "so are the weights" in failed.reason  # float32: another type would not help
    assert not (tmp_path / "x" / "records.jsonl").exists()
