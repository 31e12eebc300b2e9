"""The stages lead from pixels to the first token and end with the same logits as the engine's prefill."""

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpbench import registry
from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone
from dpbench.engine import forward
from dpbench.manifest.cell import Cell, cells
from dpbench.manifest.reading import make_manifest
from dpbench.measure import memory
from dpbench.measure.first_token import NUM_DECODED, FirstToken, charge_reduce
from dpbench.measure.profile_row import count_stage_flops
from dpbench.measure.synthetic_prompts import PromptShape
from dpbench.measure.timing import HostClock, Recorder

METHODS = ("none", "random", "cls-attention", "fastv", "downsample")


@cache
def backbone() -> Backbone:
    return miniatures.backbone("llava")


def cell_of(method: str, keep: int) -> Cell:
    budgets = {} if method == "none" else {"budgets": {"keep": [keep]}}
    data = {"name": "try", "backbone": "toy-llava", "methods": [method], **budgets}
    return next(cells(make_manifest(data, source="test")))


def first_token_of(method: str, keep: int = 8, *, batch_size: int = 1) -> FirstToken:
    shape = PromptShape(image_hw=(56, 56), text_tokens=30, batch_size=batch_size)
    return FirstToken(backbone(), registry.load(method, {}).bind(backbone()), cell_of(method, keep), shape)


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


def run(first_token: FirstToken, turn: int = 0) -> dict[str, float]:
    recorder = Recorder(HostClock())
    with torch.inference_mode():
        first_token.run(turn, recorder)
    return recorder.ms()


@pytest.mark.parametrize("method", METHODS)
def test_the_stages_sum_to_the_time_to_the_first_token(method: str) -> None:
    first_token, clock = first_token_of(method), OperatorClock()
    recorder = Recorder(clock)
    with torch.inference_mode(), clock:
        first_token.run(0, recorder)
    parts = charge_reduce(recorder.ms())
    assert parts["ttft"] > 100
    assert sum(parts[name] for name in ("encode", "reduce", "splice", "prefill")) == parts["ttft"]


@pytest.mark.parametrize("method", METHODS)
def test_the_last_stage_is_the_engines_prefill(method: str) -> None:
    first_token = first_token_of(method, batch_size=2)
    with torch.inference_mode():
        *_, (name, last) = [(name, call()) for name, call in first_token.stages(0).items()]
        expected = forward.prefill(first_token.backbone, first_token.method, first_token.pruned_prompts)
    assert name == "prefill"
    assert last.shape[0] == 2
    torch.testing.assert_close(last, expected)


def test_images_rotate() -> None:
    first_token = first_token_of("none")
    embeds = []
    for turn in range(5):
        run(first_token, turn)
        embeds.append(first_token.features[0][0].embeds_ND)
    assert not torch.equal(embeds[0], embeds[1])
    assert torch.equal(embeds[0], embeds[4]), "four batches in turn"


def test_only_methods_that_request_signals_have_that_stage_and_only_cuts_rank() -> None:
    assert {"signals", "rank"} & set(run(first_token_of("random"))) == set()
    assert "signals" in run(first_token_of("cls-attention"))
    assert "rank" in run(first_token_of("fastv"))


def test_an_answer_has_a_first_token_and_a_fixed_number_after_it() -> None:
    first_token, recorder = first_token_of("fastv"), Recorder(HostClock())
    marks = []
    mark = recorder.clock.mark
    recorder.clock.mark = lambda: marks.append(mark()) or marks[-1]  # type: ignore[method-assign, func-returns-value]
    with torch.inference_mode():
        first_token.answer(0, recorder)
    ms = recorder.ms()
    ranges = 2 * 2
    assert len(marks) == ranges + NUM_DECODED + 1
    assert 0 < ms["decode"] < ms["end_to_end"]
    assert ms["preprocess"] < ms["end_to_end"]


def test_the_cache_holds_two_tensors_of_every_layers_length() -> None:
    first_token = first_token_of("fastv", keep=8)
    run(first_token)
    config = backbone().decoder.config
    prefilled, (prompt,) = first_token.prefilled(), first_token.pruned_prompts
    lengths = [30 + count for count in prompt.read_per_layer(backbone().num_layers, prefilled.survivors[0])]
    per_position = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads * 8  # float64
    assert len(set(lengths)) > 1
    assert memory.kv_bytes(prefilled.cache) == tuple(per_position * length for length in lengths)


def test_flops_of_the_stages_add_up_and_only_ranking_methods_have_flops_in_reduce() -> None:
    first_token = first_token_of("fastv")
    with torch.inference_mode():
        flops = count_stage_flops(first_token)
    assert flops["ttft"] == flops["encode"] + flops["reduce"] + flops["splice"] + flops["prefill"]
    assert flops["reduce"] > 0, "the attention row that ranks"
    with torch.inference_mode():
        assert count_stage_flops(first_token_of("random"))["reduce"] == 0


def test_the_flops_of_a_scorer_are_those_of_its_matrix_products() -> None:
    model, cell = backbone(), cell_of("diffprune", 8)
    scorer = registry.load("diffprune", {}).untrained().bind(model)
    with torch.inference_mode():
        first_token = FirstToken(model, scorer, cell, PromptShape(image_hw=(56, 56), text_tokens=30))
        reduce_flops = count_stage_flops(first_token)["reduce"]
    num, width, hidden = 16, model.decoder.config.hidden_size, 512
    block = 4 * hidden**2 + 2 * 4 * hidden**2 + 2 * num * hidden
    assert reduce_flops == 2 * num * (width * hidden + 2 * block + hidden)


def test_weights_count_shared_ones_once() -> None:
    shared = torch.nn.Linear(3, 5, bias=False)
    twice = torch.nn.Sequential(shared, shared, torch.nn.BatchNorm1d(5, affine=False))
    assert memory.weights_bytes(twice) == 4 * 15 + 4 * 5 + 4 * 5 + 8


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["none", "random", "diffprune", "fastv", "pyramiddrop"])
def test_on_a_gpu_the_captured_stages_give_the_same_logits(method: str) -> None:
    model = miniatures.backbone("llava")
    model.model.to("cuda")
    shape = PromptShape(image_hw=(56, 56), text_tokens=30)
    cell = cell_of(method, 8)
    with torch.inference_mode():
        logits_by_mode = []
        for graphed in (False, True):
            untrained = registry.load(method, {}).untrained()
            bound = (untrained.graphed() if graphed else untrained).bind(model)
            first_token = FirstToken(model, bound, cell, shape, graphed=graphed)
            for turn in (0, 1, 1):
                junk = [torch.randint(10**9, (1 << n,), device="cuda") for n in range(16)]
                del junk  # fills free memory with garbage, which a graph reads if its inputs were freed
                logits = [call() for call in first_token.stages(turn).values()][-1]
            logits_by_mode.append(logits.clone())
    torch.testing.assert_close(logits_by_mode[0], logits_by_mode[1], rtol=1e-4, atol=1e-4)
