"""The losses of training: hard ones are the deployed method's, soft ones have the gradient of what they are."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cards import bare_card
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from dpbench import backbones, registry
from dpbench.backbones import miniatures as tinies
from dpbench.backbones.base import Backbone
from dpbench.backbones.caption_loss import caption_losses
from dpbench.budget import BudgetRequest
from dpbench.diffprune import checkpoint
from dpbench.diffprune.denoiser import Denoiser
from dpbench.diffprune.example import Example
from dpbench.diffprune.objective import KeepRule, Objective, generator_of, hardness
from dpbench.diffprune.scorer import Scorer, ScorerSize
from dpbench.diffprune.soft_topk import soft_topk
from dpbench.diffprune.throttler import THROTTLERS
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.errors import ConfigError
from dpbench.method import Method

ASKED = "Describe ."
SIZES = ((60, 100), (60, 60), (40, 200))
CAPTIONS = ("a red circle", "nothing to see at the top left of this image", "two")
CPU = torch.device("cpu")
DIFFERENTIABLE = ("diffprune", "scale-gate", "global-denoiser")
EVERYWHERE = (*tinies.FAMILIES, "toy-llava")


@cache
def backbone(name: str) -> Backbone:
    """A frozen backbone in float64 throughout: transformers' RMS norms would round to float32 inside."""
    toy = name == "toy-llava"
    made = backbones.load(name, dtype="float64") if toy else tinies.backbone(name)
    made.model.requires_grad_(False)
    for module in made.decoder.modules():
        if type(module).__name__.endswith("RMSNorm"):
            norm = partial(rms_norm, normalized_shape=module.weight.shape, weight=module.weight)
            module.forward = partial(norm, eps=module.variance_epsilon)
    return made


def examples(num: int = 3) -> list[Example]:
    """Pictures of several sizes: AnyRes cuts them into 5, 5 and 4 views, Qwen makes 8, 4 and 7 tokens of them."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES[:num]]
    return [Example(*each) for each in zip(pictures, CAPTIONS[:num], strict=True)]


def parts(model: Backbone, variant: str = "diffprune") -> tuple[Scorer, Denoiser]:
    """Scorer and denoiser in float32, the denoiser no longer the identity."""
    size = ScorerSize(width=model.decoder.config.hidden_size, hidden=16, heads=2, ffn=2)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        scorer = Scorer(size)
        denoiser = Denoiser(size, "global" if variant == "global-denoiser" else "identity")
        nn.init.normal_(denoiser.up.weight, std=0.05)
    return scorer, denoiser


def objective(model: Backbone, variant: str = "diffprune") -> Objective:
    scorer, denoiser = (part.double() for part in parts(model, variant))
    return Objective(model, scorer, denoiser, variant, ASKED)


def generators(num: int) -> list[torch.Generator]:
    return [generator_of(CPU, 5, place) for place in range(num)]


def engine_losses(model: Backbone, method: Method, example: Example, rule: decision.Rule) -> Tensor:
    """What the engine gives for the prompt with the reply appended, pruned by a method."""
    tokenizer = model.processor.tokenizer
    ids = tokenizer(f" {example.caption}", add_special_tokens=False)["input_ids"]
    reply = torch.tensor([*ids, tokenizer.eos_token_id])
    prompt = model.prompt([example.image], ASKED)
    positions = prompt.positions_PL
    if positions is not None:
        positions = torch.cat([positions, positions[:, -1:] + torch.arange(1, len(reply) + 1)], dim=1)
    prompt = replace(prompt, ids_L=torch.cat([prompt.ids_L, reply]), positions_PL=positions)
    made = [decision.image_generator(0, "test", 0)]
    spliced = pruned_prompt.splice(model, method, prompt, model.encode(prompt.pixels), made, rule)
    logits = forward.logits(model, method, [spliced])[0]
    return cross_entropy(logits[-len(reply) - 1 : -1], reply, reduction="none")


def close(got: Tensor, wanted: Tensor, rtol: float = 1e-9, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got.detach(), wanted.detach(), rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("64", KeepRule((64,))),
        ("64,128,192", KeepRule((64, 128, 192))),
        (" 64, 128", KeepRule((64, 128))),
        ("0.1,0.2", KeepRule((0.1, 0.2))),
        ("0.25", KeepRule((0.25,))),
        ("32,0.5", KeepRule((32, 0.5))),
        ("0.05-0.4", KeepRule((), (0.05, 0.4))),
    ],
)
def test_a_keep_rule_is_counts_shares_or_a_range(text: str, rule: KeepRule) -> None:
    assert KeepRule.parse(text) == rule
    assert [type(each) for each in KeepRule.parse(text).choices] == [type(each) for each in rule.choices]


WRONG = ("", "many", "0", "-4", "64,", "64,0", "1.0", "1.5", "0.0", "0.4-0.1", "0.2-0.2", "0.0-0.4", "0.5-1.0")


@pytest.mark.parametrize("text", [*WRONG, "64-128", "0.1-0.2-0.3", "nan", "nan-0.5", "inf", "1e-1", "0.1-"])
def test_what_is_no_budget_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        KeepRule.parse(text)
    assert str(raised.value) == (
        f"--keep: {text!r} is not a budget; give counts (64 or 64,128), shares (0.1,0.2) or a range (0.05-0.4)"
    )


def test_drawn_budgets_are_the_choices_and_a_function_of_the_seed() -> None:
    rule = KeepRule.parse("64,128,192")

    def drawn(seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        return [rule.draw(rng) for _ in range(300)]

    assert all(drawn(1).count(budget) > 60 for budget in (64, 128, 192))
    assert set(drawn(1)) == {64, 128, 192}
    assert all(type(budget) is int for budget in drawn(1))
    assert drawn(1) == drawn(1) != drawn(2)
    assert rule.validation_budgets() == (64, 128, 192)


def test_budgets_drawn_from_a_range_fill_it() -> None:
    rule = KeepRule.parse("0.05-0.4")
    drawn = [rule.draw(np.random.default_rng([3, step])) for step in range(300)]
    assert all(0.05 <= budget <= 0.4 for budget in drawn)
    assert min(drawn) < 0.07
    assert max(drawn) > 0.38
    assert drawn == [rule.draw(np.random.default_rng([3, step])) for step in range(300)]
    assert rule.validation_budgets() == (0.05, pytest.approx(0.225), 0.4)


@pytest.mark.parametrize(
    ("family", "budget", "per_row"),
    [
        ("llava", 6, [6.0] * 3),
        ("llava", 0.2, [3.2] * 3),
        ("llava", 0.01, [1.0] * 3),
        ("llava_next", 20, [4.0] * 14),
        ("llava_next", 23, [4.0] * 14),
        ("llava_next", 3, [1.0] * 14),
        ("llava_next", 0.25, [4.0] * 14),
        ("qwen2_5_vl", 3, [3.0] * 3),
        ("qwen2_5_vl", 0.5, [4.0, 2.0, 3.5]),
        ("qwen2_5_vl", 0.2, [1.6, 1.0, 1.4]),
    ],
)
def test_a_budget_is_shared_over_the_views(family: str, budget: float, per_row: list[float]) -> None:
    made = objective(backbone(family))
    batch = made.encode(examples())
    budgets = made.budgets(batch, budget)
    assert budgets.dtype == torch.float64
    close(budgets, torch.tensor(per_row, dtype=torch.float64))


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_what_is_read_is_the_towers_and_needs_no_gradient(family: str) -> None:
    model = backbone(family)
    given = examples()
    batch = objective(model).encode(given)
    for example, features, embeds, prompt in zip(given, batch.features, batch.embeds, batch.prompts, strict=True):
        alone = model.encode(model.prompt([example.image], ASKED).pixels)[0]
        close(embeds, alone.embeds_ND)
        close(features.embeds_ND, alone.embeds_ND)
        assert torch.equal(prompt.ids_L, model.prompt([example.image], ASKED).ids_L)
        assert not embeds.requires_grad
    assert batch.captions == CAPTIONS


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("budget", [1, 3, 20, 1000, 0.25, 0.4, 0.5])
def test_hard_losses_are_those_of_the_deployed_method(family: str, budget: float, tmp_path: Path) -> None:
    model, given = backbone(family), examples()
    scorer, denoiser = parts(model)
    checkpoint.save(tmp_path, scorer, bare_card(family, scorer.size))
    method = registry.load("diffprune", {"checkpoint": str(tmp_path)}).bind(model)
    made = Objective(model, scorer.double(), denoiser.double(), "diffprune", ASKED)
    rule = (
        decision.Rule(BudgetRequest(keep=budget))
        if isinstance(budget, int)
        else decision.Rule(BudgetRequest(prune_rate=1 - budget))
    )
    wanted = [engine_losses(model, method, each, rule) for each in given]
    batch = made.encode(given)
    close(made.hard_losses(batch, budget), torch.cat(wanted))
    if budget < 4:  # or everything may be kept
        assert (torch.cat(wanted) - made.full_losses(batch)).abs().mean() > 1e-3


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_full_losses_are_those_of_the_unpruned_backbone(family: str) -> None:
    model, given = backbone(family), examples()
    made = objective(model)
    batch = made.encode(given)
    losses = made.full_losses(batch)
    close(losses, caption_losses(model, batch.prompts, batch.features, batch.embeds, CAPTIONS))
    close(losses, torch.cat([engine_losses(model, Method(), each, decision.Rule()) for each in given]))


def around(loss: Callable[[Tensor], Tensor], logits: Tensor, num: int = 5) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A loss as a function of a handful of its logits, spread over the rows, and these."""
    at = torch.linspace(0, logits.numel() - 1, num).long()

    def of_some(some: Tensor) -> Tensor:
        return loss(logits.flatten().index_put((at,), some).view_as(logits))

    return of_some, logits.flatten()[at].requires_grad_()


def soft_loss(made: Objective, num: int, budget: float, tau: float) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The summed soft loss as a function of the logits under fixed noise, and the logits."""
    batch = made.encode(examples(num))
    gate = made.gate(batch, budget, tau, generators(num))
    logits = made.logits(batch).detach()
    return lambda each: made.soft_losses(each, batch, gate).sum(), logits


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("variant", DIFFERENTIABLE)
def test_the_gradient_in_the_logits_is_that_of_the_loss(name: str, variant: str) -> None:
    made = objective(backbone(name), variant)
    loss, some = around(*soft_loss(made, 1 if name == "toy-llava" else 2, 0.4, 0.7))
    (gradient,) = torch.autograd.grad(loss(some), some)
    assert (gradient.abs() > 1e-4).any()
    assert torch.autograd.gradcheck(loss, (some,), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_straight_through_gradient_is_not_that_of_the_loss(name: str) -> None:
    made = objective(backbone(name), "gumbel-ste")
    loss, some = around(*soft_loss(made, 1 if name == "toy-llava" else 2, 0.4, 0.7))
    (gradient,) = torch.autograd.grad(loss(some), some)
    assert (gradient.abs() > 1e-4).any()
    with torch.no_grad():
        for shift in torch.eye(len(some), dtype=torch.float64) * 1e-6:
            assert float(loss(some + shift)) == float(loss(some - shift))
        far = some + torch.tensor([50.0, -50, 50, -50, 50], dtype=torch.float64)
        assert abs(float(loss(far) - loss(some))) > 1e-4  # it is no constant either


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("variant", list(THROTTLERS))
def test_an_image_has_the_losses_it_has_alone(family: str, variant: str) -> None:
    """Its noise is its own, and padding and the images around it leave no trace."""
    made, given = objective(backbone(family), variant), examples()
    whole = made.encode(given)
    losses = made.soft_losses(made.logits(whole), whole, made.gate(whole, 0.4, 0.5, generators(3)))
    alone = []
    for example, generator in zip(given, generators(3), strict=True):
        batch = made.encode([example])
        gate = made.gate(batch, 0.4, 0.5, [generator])
        alone.append(made.soft_losses(made.logits(batch), batch, gate))
    close(losses, torch.cat(alone), rtol=1e-8, atol=1e-8)
    other = made.gate(whole, 0.4, 0.5, [generator_of(CPU, 6, place) for place in range(3)])
    changed = made.soft_losses(made.logits(whole), whole, other)
    assert bool((changed == losses).all()) == (variant == "scale-gate")


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_every_token_of_a_batch_has_noise_of_its_own(family: str) -> None:
    made = objective(backbone(family))
    batch = made.encode(examples())
    gate = made.gate(batch, 0.4, 0.5, generators(3))
    drawn = gate.noise_RND[batch.views.valid_RN]
    assert len(drawn.flatten().unique()) == drawn.numel()
    assert len(gate.gumbel_RN[batch.views.valid_RN].unique()) == int(batch.views.valid_RN.sum())
    assert float(drawn.mean()) == pytest.approx(0, abs=0.15)
    assert float(drawn.std()) == pytest.approx(1, abs=0.15)
    read = [each.read_N for each in batch.features]
    assert torch.equal(gate.valid_RN, batch.views.rows(read))
    assert int(gate.valid_RN.sum()) == sum(each.num_read for each in batch.features)


@pytest.mark.parametrize("family", tinies.FAMILIES)
@pytest.mark.parametrize("variant", list(THROTTLERS))
def test_gradients_reach_scorer_and_denoiser_and_nothing_frozen(family: str, variant: str) -> None:
    model = backbone(family)
    made = objective(model, variant)
    batch = made.encode(examples())
    losses = made.soft_losses(made.logits(batch), batch, made.gate(batch, 0.4, 0.5, generators(3)))
    losses.sum().backward()
    assert all(parameter.grad is None for parameter in model.model.parameters())
    for module in (made.scorer, made.denoiser):
        reached = {}
        for name, parameter in module.named_parameters():
            assert parameter.grad.isfinite().all(), name
            reached[name] = float(parameter.grad.abs().sum())
        shifts = {name for name, gradient in reached.items() if gradient < 1e-9}  # one number added to all logits
        knows_no_shift = module is made.scorer and variant != "identity-ste"
        assert shifts == ({"blocks.norm.bias", "head.bias"} if knows_no_shift else set())


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_tokens_that_are_never_read_get_no_gradient_and_no_budget(family: str) -> None:
    made = objective(backbone(family))
    batch = made.encode(examples())
    gate = made.gate(batch, 0.4, 0.5, generators(3))
    logits = made.logits(batch).detach().requires_grad_()
    made.soft_losses(logits, batch, gate).sum().backward()
    assert (logits.grad[~gate.valid_RN] == 0).all()
    sums = soft_topk(logits.detach(), gate.k_R, gate.tau, mask=gate.valid_RN).sum(-1)
    close(sums, torch.minimum(gate.k_R, gate.valid_RN.sum(-1).double()), atol=1e-8)


@pytest.mark.parametrize("family", tinies.FAMILIES)
def test_a_tiny_temperature_without_noise_is_the_hard_choice(family: str) -> None:
    """The scale gate then passes the hard top-k and zeroes the rest, and hardness says so."""
    made = objective(backbone(family), "scale-gate")
    nn.init.zeros_(made.denoiser.up.weight)
    batch = made.encode(examples())
    logits = made.logits(batch).detach()
    gate = made.gate(batch, 2, 1e-9, generators(3))
    assert hardness(logits, gate) == pytest.approx(1, abs=1e-6)
    assert hardness(logits, replace(gate, tau=100.0)) < 0.9
    kept = soft_topk(logits, gate.k_R, 1e-9, mask=gate.valid_RN).round()
    zeroed = batch.views.images(batch.views.rows(batch.embeds) * kept[..., None])
    wanted = caption_losses(made.backbone, batch.prompts, batch.features, zeroed, CAPTIONS)
    close(made.soft_losses(logits, batch, gate), wanted, rtol=1e-6, atol=1e-6)


def test_a_generator_is_a_function_of_its_key() -> None:
    def first(*key: int) -> float:
        return float(torch.rand(1, generator=generator_of(CPU, *key)))

    assert first(1, 23) == first(1, 23)
    assert len({first(1, 23), first(12, 3), first(23, 1), first(1, 2, 3), first(123)}) == 5
