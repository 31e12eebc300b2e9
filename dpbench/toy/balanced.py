"""Questions that cannot be answered without the image: each text is asked of one scene per possible answer.

A guesser who sees only the text is right once in the number of answers, whatever it guesses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpbench.toy.questions import CHOICES, Question, answer, propose
from dpbench.toy.scenes import (
    COLOURS,
    GLYPHS,
    MAX_OBJECTS,
    PLACES,
    SHAPES,
    Scene,
    is_held_out,
    random_object,
    random_scene,
)

_TRIES = 3000
_EXTRA_PROPOSALS = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """One question about one scene, and its answer; `scene` is the number of the scene in its set."""

    scene: int
    question: Question
    truth: str


@dataclass(frozen=True, slots=True)
class BalancedSet:
    """A few held-out scenes that differ little, and questions balanced over their answers."""

    scenes: tuple[Scene, ...]
    asked: tuple[Asked, ...]


def mutate(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change one thing: an attribute, a place, two swapped places, one object more or one less."""
    items, at = list(scene), int(rng.integers(len(scene)))
    free = [place for place in PLACES if place not in {item.place for item in items}]
    change = rng.choice(["colour", "shape", "glyph", "size", "move", "swap", "add", "remove", "replace"])
    if change == "colour":
        items[at] = replace(items[at], colour=str(rng.choice(list(COLOURS))))
    elif change == "shape":
        items[at] = replace(items[at], shape=str(rng.choice(SHAPES)))
    elif change == "glyph" and items[at].glyph:
        items[at] = replace(items[at], glyph=str(rng.choice(GLYPHS)))
    elif change == "size":
        items[at] = replace(items[at], size="small" if items[at].size == "large" else "large", glyph="")
    elif change == "move":
        items[at] = replace(items[at], place=str(rng.choice(free)))
    elif change == "replace":
        items[at] = random_object(items[at].place, rng)
    elif change == "swap":
        other = int(rng.integers(len(items)))
        first, second = items[at], items[other]
        items[at], items[other] = replace(first, place=second.place), replace(second, place=first.place)
    elif change == "add" and len(items) < MAX_OBJECTS:
        items.append(random_object(str(rng.choice(free)), rng))
    elif change == "remove" and len(items) > 1:
        items.pop(at)
    return tuple(sorted(set(items)))


def held_out_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene that training never sees."""
    while not is_held_out(scene := random_scene(rng)):
        pass
    return scene


def find_scene_with_answer(scene: Scene, question: Question, wanted: str, rng: np.random.Generator) -> Scene | None:
    """Return a held-out scene near this one on which the question has the wanted answer, or None if none is found."""
    for _ in range(_TRIES):
        near = scene
        for _ in range(int(rng.integers(1, 4))):
            near = mutate(near, rng)
        if answer(question, near) == wanted and is_held_out(near):
            return near
    return None


def balanced_set(
    kinds: Sequence[str], rng: np.random.Generator, *, answers: int | None = None, also: tuple[str, ...] = ()
) -> BalancedSet:
    """Build one set: a question, and a scene for each of its answers.

    Args:
        kinds: kinds of question to draw from; the first question's kind is drawn from them evenly.
        rng: the source of randomness.
        answers: number of answers to use (the options of a multiple choice); all by default.
        also: further answers, such as "unanswerable".
    """
    while True:
        base = held_out_scene(rng)
        question = propose(str(rng.choice(kinds)), base, rng)
        truth = answer(question, base)
        if truth is None or truth not in question.choices:
            continue
        others = [choice for choice in question.choices if choice != truth]
        picked = [truth, *map(str, rng.permutation(others)[: (answers or len(question.choices)) - 1]), *also]
        near = [base, *(find_scene_with_answer(base, question, wanted, rng) for wanted in picked[1:])]
        scenes = tuple(scene for scene in near if scene is not None)
        if len(scenes) == len(picked) == len(set(scenes)):
            first = tuple(Asked(i, question, wanted) for i, wanted in enumerate(picked))
            return BalancedSet(scenes, first)


def more_questions(group: BalancedSet, kinds: Sequence[str], rng: np.random.Generator, most: int) -> BalancedSet:
    """Add up to `most` further questions, each balanced over a subset of the scenes the set has."""
    asked, texts = list(group.asked), {group.asked[0].question}
    for _ in range(_EXTRA_PROPOSALS):
        question = propose(str(rng.choice(kinds)), group.scenes[rng.integers(len(group.scenes))], rng)
        by_answer = {answer(question, scene): i for i, scene in reversed(list(enumerate(group.scenes)))}
        if question in texts or not set(CHOICES[question.kind]) <= set(by_answer) or len(texts) > most:
            continue
        texts.add(question)
        asked += [Asked(by_answer[choice], question, choice) for choice in CHOICES[question.kind]]
    return BalancedSet(group.scenes, tuple(asked))


def sets_until(num: int, make: Iterator[BalancedSet]) -> list[BalancedSet]:
    """Collect sets until they hold at least `num` questions; a text may come up in several sets, balanced in each."""
    groups: list[BalancedSet] = []
    while sum(len(group.asked) for group in groups) < num:
        groups.append(next(make))
    return groups
