"""VP-noise against hard removal under the same scores (Figure 4b): how alike are the two restrictions?

Scores are independent standard normal, or the scorer's. The tokens above the budget's threshold stay as they are; the
others are removed, or replaced by noise as loud as they are, or every token is mixed with noise by its soft weight.
What is predicted then is compared with what is right: caption tokens, teacher-forced, or the class of an image.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpbench.diffprune.objective import generator_of
from dpbench.diffprune.soft_topk import hard_topk_mask
from dpbench.diffprune.throttler import throttle, vp_noise
from dpbench.probe.runner import Kind, Setting
from dpbench.probe.settings import Form, NoiseSettings, Way
from dpbench.probe.site import Site, draw_gate

TOP = {"top1": 1, "top5": 5}


def settings_of(settings: NoiseSettings) -> Iterator[Setting]:
    """Yield the unpruned model first, then every form at every budget; only the soft form has a temperature."""
    yield {"form": "unpruned", "scores": None, "keep": None, "tau": None}
    for keep in settings.keep:
        for scores in settings.scores:
            for form in settings.forms:
                for tau in settings.tau if form == "soft" else (None,):
                    yield {"form": form, "scores": scores, "keep": keep, "tau": tau}


@torch.no_grad()
def measure(site: Site, setting: Setting, settings: NoiseSettings, spread: float) -> dict[str, tuple[float, ...]]:
    """Return top-1 and top-5 accuracy and the mean loss of every batch.

    Args:
        site: where the scorer sits.
        setting: from `settings_of`.
        settings: of the probe.
        spread: of the untrained scorer's logits, the unit of tau; random scores have spread 1.
    """
    unit = 1.0 if setting["scores"] == "random" else spread
    values: dict[str, list[float]] = {"top1": [], "top5": [], "losses": []}
    for number in range(settings.batches):
        batch = site.load_batch(number, settings.batch_size, held_out=True)
        predicted_TV, right_T = _predict(site, batch, setting, number, unit)
        ranks_T = (predicted_TV > predicted_TV.gather(1, right_T[:, None])).sum(1)
        for name, most in TOP.items():
            values[name].append(float((ranks_T < most).double().mean()))
        values["losses"].append(float(torch.nn.functional.cross_entropy(predicted_TV, right_T)))
    return {name: tuple(numbers) for name, numbers in values.items()}


def _predict(site: Site, batch: object, setting: Setting, number: int, unit: float) -> tuple[Tensor, Tensor]:
    form: Form | str = setting["form"]
    tokens_RND = site.tokens(batch)
    if form == "unpruned":
        return site.predict(batch, tokens_RND)
    scores_RN = random_scores(site, batch, number) if setting["scores"] == "random" else site.logits(batch)
    tau = unit * (setting["tau"] or 1.0)
    gate = draw_gate(site, batch, Way(variant="diffprune"), setting["keep"], tau, number)
    if form == "soft":
        return site.predict(batch, throttle(scores_RN, tokens_RND, gate))
    kept_RN = hard_topk_mask(scores_RN, gate.k_R.round(), gate.valid_RN)
    if form == "removal":
        return site.predict_kept(batch, kept_RN)
    return site.predict(batch, vp_noise(tokens_RND, kept_RN.double(), gate.noise_RND))


def random_scores(site: Site, batch: object, number: int) -> Tensor:
    """Return independent standard normal scores for the tokens of a batch, (R, N), a function of seed and number."""
    tokens_RND = site.tokens(batch)
    generator = generator_of(tokens_RND.device, site.seed, number, 0)
    return torch.randn(tokens_RND.shape[:2], generator=generator, device=tokens_RND.device)


NOISE = Kind("noise", settings_of, measure)
