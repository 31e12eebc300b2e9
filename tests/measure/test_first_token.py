"""The stages together are the way from pixels to the first token, with the engine's own logits at the end."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpbench import registry
from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone
from dpbench.engine import forward
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest
from dpbench.measure import memory
from dpbench.measure.first_token import DECODED, FirstToken, net
from dpbench.measure.profile_row import stage_flops
from dpbench.measure.synthetic_prompts import Inputs
from dpbench.measure.timing import HostClock, Recorder

METHODS = ("none", "random", "cls-attention", "fastv", "downsample")


@cache
def backbone() -> Backbone:
    return tinies.backbone("llava")


def cell_of(method: str, keep: int) -> Cell:
    budgets = {} if method == "none" else {"budgets": {"keep": [keep]}}
    data = {"name": "try", "backbone": "toy-llava", "methods": [method], **budgets}
    return next(cells(make_manifest(data, source="test")))


def first(method: str, keep: int = 8, **asked: int) -> FirstToken:
    wanted = Inputs(image_hw=(56, 56), text_tokens=30, **asked)  # type: ignore[arg-type]
    return FirstToken(backbone(), registry.load(method, {}).bind(backbone()), cell_of(method, keep), wanted)


class OperatorClock(TorchDispatchMode):
    """A clock that moves by one millisecond with every operator that torch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))

    def mark(self) -> int:
        return self.operators

    def wait(self, mark: int) -> None:
        pass

    def ms_between(self, start: int, stop: int) -> float:
        return stop - start


def run(subject: FirstToken, turn: int = 0) -> dict[str, float]:
    recorder = Recorder(HostClock())
    with torch.inference_mode():
        subject.run(turn, recorder)
    return recorder.ms()


@pytest.mark.parametrize("method", METHODS)
def test_the_stages_sum_to_the_time_to_the_first_token(method: str) -> None:
    subject, clock = first(method), OperatorClock()
    recorder = Recorder(clock)
    with torch.inference_mode(), clock:
        subject.run(0, recorder)
    parts = net(recorder.ms())
    assert parts["ttft"] > 100
    assert sum(parts[name] for name in ("encode", "reduce", "splice", "prefill")) == parts["ttft"]


@pytest.mark.parametrize("method", METHODS)
def test_the_last_stage_is_the_engines_prefill(method: str) -> None:
    subject = first(method, batch_size=2)
    with torch.inference_mode():
        *_, (name, last) = [(name, call()) for name, call in subject.stages(0).items()]
        wanted = forward.prefill(subject.backbone, subject.method, subject.spliced)
    assert name == "prefill"
    assert last.shape[0] == 2
    torch.testing.assert_close(last, wanted)


def test_images_rotate() -> None:
    subject = first("none")
    seen = []
    for turn in range(5):
        run(subject, turn)
        seen.append(subject.features[0][0].embeds_ND)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[4]), "four batches in turn"


def test_only_methods_that_ask_for_signals_have_them_and_only_cuts_rank() -> None:
    assert {"signals", "rank"} & set(run(first("random"))) == set()
    assert "signals" in run(first("cls-attention"))
    assert "rank" in run(first("fastv"))


def test_an_answer_has_its_first_token_and_so_many_behind_it() -> None:
    subject, recorder = first("fastv"), Recorder(HostClock())
    marks = []
    counted = recorder.clock.mark
    recorder.clock.mark = lambda: marks.append(counted()) or marks[-1]  # type: ignore[method-assign, func-returns-value]
    with torch.inference_mode():
        subject.answer(0, recorder)
    ms = recorder.ms()
    ranges = 2 * 2
    assert len(marks) == ranges + DECODED + 1
    assert 0 < ms["decode"] < ms["end_to_end"]
    assert ms["preprocess"] < ms["end_to_end"]


def test_the_cache_holds_two_tensors_of_every_layers_length() -> None:
    subject = first("fastv", keep=8)
    run(subject)
    config = backbone().decoder.config
    lengths = [30 + count for count in subject.spliced[0].per_layer(backbone().num_layers)]
    one = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads * 8  # float64
    assert len(set(lengths)) > 1
    assert memory.kv_bytes(subject.cache()) == tuple(one * length for length in lengths)


def test_flops_of_the_stages_add_up_and_the_prefill_is_the_counters() -> None:
    subject = first("fastv")
    with torch.inference_mode():
        flops = stage_flops(subject)
    assert flops["ttft"] == flops["encode"] + flops["reduce"] + flops["splice"] + flops["prefill"]
    assert flops["reduce"] > 0, "the attention row that ranks"
    with torch.inference_mode():
        assert stage_flops(first("random"))["reduce"] == 0


def test_the_flops_of_a_scorer_are_those_of_its_matrix_products() -> None:
    model, cell = backbone(), cell_of("diffprune", 8)
    scorer = registry.load("diffprune", {}).untrained().bind(model)
    with torch.inference_mode():
        subject = FirstToken(model, scorer, cell, Inputs(image_hw=(56, 56), text_tokens=30))
        found = stage_flops(subject)["reduce"]
    num, width, hidden = 16, model.decoder.config.hidden_size, 512
    block = 4 * hidden**2 + 2 * 4 * hidden**2 + 2 * num * hidden
    assert found == 2 * num * (width * hidden + 2 * block + hidden)


def test_weights_count_shared_ones_once() -> None:
    shared = torch.nn.Linear(3, 5, bias=False)
    twice = torch.nn.Sequential(shared, shared, torch.nn.BatchNorm1d(5, affine=False))
    assert memory.weights_bytes(twice) == 4 * 15 + 4 * 5 + 4 * 5 + 8


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["none", "random", "diffprune", "fastv", "pyramiddrop"])
def test_on_a_gpu_the_captured_stages_give_the_same_logits(method: str) -> None:
    model = tinies.backbone("llava")
    model.model.to("cuda")
    wanted = Inputs(image_hw=(56, 56), text_tokens=30)
    cell = cell_of(method, 8)
    with torch.inference_mode():
        found = []
        for graphed in (False, True):
            bare = registry.load(method, {}).untrained()
            bound = (bare.graphed() if graphed else bare).bind(model)
            subject = FirstToken(model, bound, cell, wanted, graphed=graphed)
            for turn in (0, 1, 1):
                junk = [torch.randint(10**9, (1 << n,), device="cuda") for n in range(16)]
                del junk  # what a graph reads must not be lying in memory that others get
                logits = [call() for call in subject.stages(turn).values()][-1]
            found.append(logits.clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
