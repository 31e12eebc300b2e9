"""Questions about one image read it once: the same logits and answers as if each had read it alone."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from dpbench import registry
from dpbench.backbones.llava import Llava
from dpbench.budget import BudgetRequest
from dpbench.engine import decision, forward, pruned_prompt, shared_prefix
from dpbench.engine.pruned_prompt import PrunedPrompt
from dpbench.method import Method

QUESTIONS = ("What is it?", "Is there a large red triangle in this image?", "Why", "How many?", "Where is it now?")
IMAGES = ("a", "b", "a", "a", "b")


def prune(tiny: Llava, picture: Callable[[int], Image.Image], method: Method, keep: int | None) -> list[PrunedPrompt]:
    made = []
    for number, (question, image) in enumerate(zip(QUESTIONS, IMAGES, strict=True)):
        prompt = tiny.prompt([picture(ord(image))], question)
        features = tiny.encode(prompt.pixels, method.needs(tiny.provides))
        generators = [decision.image_generator(0, str(number), 0)]
        made.append(
            pruned_prompt.splice(tiny, method, prompt, features, generators, decision.Rule(BudgetRequest(keep=keep)))
        )
    return made


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the shape of every prefill's embeddings."""
    shapes: list[tuple[int, ...]] = []
    real = Llava.forward

    def forward(self: Llava, embeds: torch.Tensor, *rest: object, **options: object) -> object:
        shapes.append(tuple(embeds.shape[:2]))
        return real(self, embeds, *rest, **options)

    monkeypatch.setattr(Llava, "forward", forward)
    return shapes


@pytest.mark.parametrize("name", ["none", "grid", "holov", "cls-attention", "pool"])
def test_answers_equal_those_of_whole_prompts(
    tiny: Llava, picture: Callable[[int], Image.Image], prefilled: list[tuple[int, ...]], name: str
) -> None:
    method = registry.load(name).bind(tiny)
    prompts = prune(tiny, picture, method, None if name == "none" else 20)
    shared = shared_prefix.generate(tiny, method, prompts, IMAGES, max_new_tokens=8)
    assert prefilled[0][0] == 2, "two images, so two beginnings"
    alone = [forward.generate(tiny, method, [each], max_new_tokens=8)[0].text for each in prompts]
    assert [each.text for each in shared] == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("name", ["random", "prunesid", "fastv"])
def test_what_differs_per_question_or_cuts_inside_shares_nothing(
    tiny: Llava, picture: Callable[[int], Image.Image], prefilled: list[tuple[int, ...]], name: str
) -> None:
    method = registry.load(name).bind(tiny)
    prompts = prune(tiny, picture, method, 40)
    shared = shared_prefix.generate(tiny, method, prompts, IMAGES, max_new_tokens=4)
    assert not prefilled
    plain = forward.generate(tiny, method, prompts, max_new_tokens=4)
    assert [each.text for each in shared] == [each.text for each in plain]


def test_prompts_are_only_taken_for_alike_where_they_are(tiny: Llava, picture: Callable[[int], Image.Image]) -> None:
    prompts = prune(tiny, picture, Method(), None)
    assert shared_prefix.share(prompts, IMAGES).head_B == (0, 1, 0, 0, 1)
    assert shared_prefix.share(prompts, ["x"] * 5).head_B == (0, 1, 0, 0, 1)
    assert shared_prefix.share(prompts, IMAGES).heads[0].embeds_LD.shape[0] > 144


def test_little_to_share_is_not_split(
    tiny: Llava, picture: Callable[[int], Image.Image], prefilled: list[tuple[int, ...]]
) -> None:
    prompt: PrunedPrompt = prune(tiny, picture, Method(), None)[0]
    for images, split in (("abcdeff", False), ("abcdee", True)):
        prefilled.clear()
        shared_prefix.generate(tiny, Method(), [prompt] * len(images), images, max_new_tokens=2)
        assert bool(prefilled) == split, images
