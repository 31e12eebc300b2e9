"""The conformance suite: checks that every method must pass on every backbone it claims.

A method claims a backbone unless its `needs` raises. The backbones are random miniatures of the three families, and
toy-llava.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from dpbench import backbones, registry
from dpbench.backbones import miniatures
from dpbench.backbones.base import Backbone
from dpbench.budget import ROUNDING, BudgetRequest
from dpbench.conformance import BACKBONES
from dpbench.engine import decision, forward, pruned_prompt
from dpbench.engine.decision import Rule
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.errors import DpbenchError, UnsupportedError
from dpbench.method import Method, VisualTokens

QUESTION = "Is there a red circle in the image?"
SIZES = ((60, 100), (100, 60))
CLOSE = 1e-6
FIELDS, CLAIM = "hyper-parameters", "claims this backbone"
_OPTIONAL = frozenset({"cls_attention", "cls_attention[0]", "cls_hidden_VC", "received_attention_N", "keys_Nd"})


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: "ok", why it does not apply, or what is wrong."""

    check: str
    backbone: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A method bound to a backbone, at one budget.

    Attributes:
        backbone: a miniature, or toy-llava.
        method: bound to it.
        rule: a budget that the method can reach.
    """

    backbone: Backbone
    method: Method
    rule: Rule

    def build_prompt(self, number: int) -> PrunedPrompt:
        """Return the pruned prompt for one of two images, 0 or 1."""
        noise = np.random.default_rng(number).integers(0, 256, (*SIZES[number], 3), dtype=np.uint8)
        question = QUESTION if number == 0 else f"{QUESTION} And how many objects are there?"
        prompt = decision.build_unpruned_prompt(
            self.backbone, self.method, [Image.fromarray(noise)], question, self.rule
        )
        features = self.backbone.encode(prompt.pixels, self.method.needs(self.backbone.provides))
        generators = [decision.image_generator(0, f"check/{number}", 0)]
        return pruned_prompt.splice(self.backbone, self.method, prompt, features, generators, self.rule)


def check(name: str, params: Mapping[str, object], names: tuple[str, ...] | None = None) -> Iterator[Finding]:
    """Run the suite on a method.

    Args:
        name: a registered method.
        params: its hyper-parameters.
        names: backbones to run it on; all by default.

    Raises:
        ConfigError: unknown method or parameter.
    """
    method = registry.load(name, params)
    yield Finding(FIELDS, "-", *_check_frozen(method))
    for backbone_name in names or BACKBONES:
        backbone = _load_backbone(backbone_name)
        try:
            method.needs(backbone.provides)
        except UnsupportedError as error:
            yield Finding(CLAIM, backbone_name, True, f"no: {error}")
            continue
        bound = method.untrained().bind(backbone)
        for title, probe in CHECKS.items():
            yield Finding(title, backbone_name, *_run_check(probe, backbone, bound))


def _run_check(probe: Callable[[Trial], str], backbone: Backbone, method: Method) -> tuple[bool, str]:
    """Run a check at three budgets until it fails; return whether it passed, and a detail."""
    for rule in (
        Rule(BudgetRequest(prune_rate=0.75), kind="final"),
        Rule(BudgetRequest(prune_rate=0.25), kind="final"),
        Rule(BudgetRequest(prune_rate=0.5)),
    ):
        try:
            problem = probe(Trial(backbone, method, rule))
        except (DpbenchError, ValueError, RuntimeError, IndexError, AssertionError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            return False, f"{problem} (budget {rule.kind}, {rule.budget.label})"
    return True, "ok"


def _check_frozen(method: Method) -> tuple[bool, str]:
    """Return whether the method is a frozen dataclass, and its hyper-parameters and `spends`, or what it is instead."""
    if not is_dataclass(method) or not type(method).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return False, f"{type(method).__name__} is not a frozen dataclass"
    values = [f"{field.name}={getattr(method, field.name)!r}" for field in fields(method) if field.init]
    return True, f"{', '.join(values)}; budget: {method.spends}"


def asks_for_what_exists(trial: Trial) -> str:
    """`needs` names optional fields of VisualTokens that the backbone has."""
    unknown = trial.method.needs(trial.backbone.provides) - _OPTIONAL
    missing = trial.method.needs(trial.backbone.provides) - trial.backbone.provides
    return f"needs names {sorted(unknown | missing)}" if unknown | missing else ""


def keeps_to_the_budget(trial: Trial) -> str:
    """What the layers read is no more than allowed: at the end, or as the mean over layers, rounding apart."""
    prompt = trial.build_prompt(0)
    counts = prompt.read_per_layer(trial.backbone.num_layers, forward.survivors(trial.backbone, trial.method, prompt))
    if any(after > before for before, after in pairwise(counts)):
        return f"layers read {counts}"
    reached = counts[-1] if trial.rule.kind == "final" else sum(counts) / len(counts)
    allowed = _count_allowed(trial)
    is_held = trial.method.spends == "per-image" and type(trial.method) is not Method
    return f"{reached:g} visual tokens of {allowed}" if is_held and reached > allowed + ROUNDING else ""


def _count_allowed(trial: Trial) -> int:
    """Return the budget, out of all visual tokens, or out of the views' tokens if the method works view by view."""
    unpruned = Trial(trial.backbone, Method(), Rule()).build_prompt(0)
    num = unpruned.num_visual
    if decision.has_reduce(trial.method) and trial.method.anyres != "global":
        num = len(unpruned.kept[0].indices_K)
    return trial.rule.budget.count(num)


def keeps_valid_tokens_once(trial: Trial) -> str:
    """Each token is kept at most once; -1 stands for rows that are not a single token."""
    for reduction in trial.build_prompt(0).kept:
        single = reduction.indices_K[reduction.indices_K >= 0]
        if len(single.unique()) < len(single):
            return "a token is kept twice"
    return ""


def repeats_itself(trial: Trial) -> str:
    """The same seed gives the same decision, bit for bit, before and inside the LLM."""
    first, second = trial.build_prompt(0), trial.build_prompt(0)
    if not torch.equal(first.embeds_LD, second.embeds_LD):
        return "two reductions of one image differ"
    one, two = (forward.logits(trial.backbone, trial.method, [prompt]) for prompt in (first, second))
    return "" if torch.equal(one, two) else "two prefills of one prompt differ"


def answers_in_batches_as_alone(trial: Trial) -> str:
    """A left-padded batch gives each prompt the same logits as on its own."""
    prompts = [trial.build_prompt(0), trial.build_prompt(1)]
    together = forward.prefill(trial.backbone, trial.method, prompts)
    for row, prompt in zip(together, prompts, strict=True):
        alone = forward.prefill(trial.backbone, trial.method, [prompt])[0]
        if not torch.isfinite(alone).all():
            return "logits are not finite"
        limit = CLOSE if alone.dtype == torch.float64 else 1e-3
        if not torch.allclose(row, alone, rtol=limit, atol=limit):
            return f"logits in a batch differ by {float((row - alone).abs().max()):.2g}"
    return ""


def leaves_no_hooks(trial: Trial) -> str:
    """The model has as many hooks afterwards as before."""

    def count_hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in trial.backbone.model.modules())

    before = count_hooks()
    forward.generate(trial.backbone, trial.method, [trial.build_prompt(0)], max_new_tokens=2)
    return "" if count_hooks() == before else f"{count_hooks() - before} hooks are left"


def does_not_change_its_input(trial: Trial) -> str:
    """`reduce` does not change the features, which other methods read too."""
    prompt = decision.build_unpruned_prompt(
        trial.backbone, trial.method, [Image.new("RGB", (96, 96))], QUESTION, trial.rule
    )
    (features,) = trial.backbone.encode(prompt.pixels, trial.method.needs(trial.backbone.provides))
    visual: VisualTokens = decision.visual_tokens(features, QUESTION, decision.image_generator(0, "check", 0))
    before = [visual.embeds_ND.clone(), visual.hidden_NC.clone()]
    max_views = trial.backbone.max_views
    decision.reduce_image(trial.method, visual, trial.rule, num_read=features.num_read, max_views=max_views)
    is_unchanged = torch.equal(before[0], visual.embeds_ND) and torch.equal(before[1], visual.hidden_NC)
    return "" if is_unchanged else "reduce changed its input features"


CHECKS: Mapping[str, Callable[[Trial], str]] = {
    "asks for what exists": asks_for_what_exists,
    "keeps to the budget": keeps_to_the_budget,
    "keeps valid tokens once": keeps_valid_tokens_once,
    "repeats itself": repeats_itself,
    "answers in batches as alone": answers_in_batches_as_alone,
    "leaves no hooks": leaves_no_hooks,
    "does not change its input": does_not_change_its_input,
}


@cache
def _miniature(family: str) -> Backbone:
    return miniatures.backbone(family)


def _load_backbone(name: str) -> Backbone:
    return backbones.load(name) if name == "toy-llava" else _miniature(name)


def table(findings: Sequence[Finding]) -> str:
    """Return a table of checks by backbones, and below it what failed or does not apply."""
    names = list(dict.fromkeys(finding.backbone for finding in findings if finding.backbone != "-"))
    cells = {(finding.check, finding.backbone): "ok" if finding.passed else "FAILED" for finding in findings}
    refused = {finding.backbone for finding in findings if finding.check == CLAIM}
    rows = [[title, *("-" if name in refused else cells.get((title, name), "") for name in names)] for title in CHECKS]
    told: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if not finding.passed or finding.check in (CLAIM, FIELDS):
            told.setdefault((finding.backbone, finding.detail), []).append(finding.check)
    notes = [
        f"{'' if backbone == '-' else f'{backbone}: '}{', '.join(checks)}: {detail}"
        for (backbone, detail), checks in told.items()
    ]
    return "\n".join([tabulate(rows, ["check", *names], "github"), "", *notes])
