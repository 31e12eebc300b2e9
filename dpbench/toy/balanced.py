"""Questions that cannot be answered without the image: each text is asked about one scene per possible answer.

Of N possible answers, a guesser that sees only the text is right once in N times.
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
class SceneQuestion:
    """One question about one scene, and its answer; `scene` is the number of the scene in its set."""

    scene: int
    question: Question
    truth: str


@dataclass(frozen=True, slots=True)
class BalancedSet:
    """A few held-out scenes that differ little, and questions balanced over their answers."""

    scenes: tuple[Scene, ...]
    questions: tuple[SceneQuestion, ...]


def mutate(scene: Scene, rng: np.random.Generator) -> Scene:
    """Change one thing: an attribute, a place, the places of two objects, or the number of objects."""
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


def find_scene_with_answer(scene: Scene, question: Question, truth: str, rng: np.random.Generator) -> Scene | None:
    """Return a held-out scene near this one in which the question has this answer, or None if none is found."""
    for _ in range(_TRIES):
        near = scene
        for _ in range(int(rng.integers(1, 4))):
            near = mutate(near, rng)
        if answer(question, near) == truth and is_held_out(near):
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
        near = [base, *(find_scene_with_answer(base, question, other, rng) for other in picked[1:])]
        scenes = tuple(scene for scene in near if scene is not None)
        if len(scenes) == len(picked) == len(set(scenes)):
            first = tuple(SceneQuestion(i, question, choice) for i, choice in enumerate(picked))
            return BalancedSet(scenes, first)


def add_questions(group: BalancedSet, kinds: Sequence[str], rng: np.random.Generator, most: int) -> BalancedSet:
    """Add up to `most` further questions, each balanced over a subset of the set's scenes."""
    questions, texts = list(group.questions), {group.questions[0].question}
    for _ in range(_EXTRA_PROPOSALS):
        question = propose(str(rng.choice(kinds)), group.scenes[rng.integers(len(group.scenes))], rng)
        by_answer = {answer(question, scene): i for i, scene in reversed(list(enumerate(group.scenes)))}
        if question in texts or not set(CHOICES[question.kind]) <= set(by_answer) or len(texts) > most:
            continue
        texts.add(question)
        questions += [SceneQuestion(by_answer[choice], question, choice) for choice in CHOICES[question.kind]]
    return BalancedSet(group.scenes, tuple(questions))


def collect_sets(num: int, sets: Iterator[BalancedSet]) -> list[BalancedSet]:
    """Collect sets until they hold at least `num` questions; a text may occur in several sets, balanced in each."""
    groups: list[BalancedSet] = []
    while sum(len(group.questions) for group in groups) < num:
        groups.append(next(sets))
    return groups
