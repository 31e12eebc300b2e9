"""Questions about scenes, with answers that follow from the scene alone; captions; in English and Chinese.

A `Question` is a kind and its phrases, not a text: `answer` evaluates it on any scene, so the benchmarks can look for
another scene in which the same words have another answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpbench.toy.scenes import COLOURS, GLYPHS, PLACES, SHAPES, SIZES, Scene, SceneObject

YES_NO = ("yes", "no")
COUNTS = ("1", "2", "3", "4")
UNANSWERABLE = "unanswerable"
NOTHING = "nothing"
CHOICES: dict[str, tuple[str, ...]] = {
    "exist": YES_NO,
    "relation": YES_NO,
    "verify": YES_NO,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": PLACES,
    "glyph": GLYPHS,
    "count": COUNTS,
}
KINDS = tuple(CHOICES)
YES_NO_KINDS = tuple(kind for kind, choices in CHOICES.items() if choices == YES_NO)
_SIDES: dict[str, Callable[[SceneObject, SceneObject], int]] = {
    "to the left of": lambda a, b: b.column - a.column,
    "to the right of": lambda a, b: a.column - b.column,
    "above": lambda a, b: b.row - a.row,
    "below": lambda a, b: a.row - b.row,
}
SIDES = tuple(_SIDES)
_CHINESE = {
    **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "白色"), strict=True)),
    **dict(zip(SHAPES, ("圆形", "正方形", "三角形", "十字形"), strict=True)),
    **dict(zip(SIZES, ("小", "大"), strict=True)),
    **dict(zip(PLACES, ("左上", "上方", "右上", "左边", "中间", "右边", "左下", "下方", "右下"), strict=True)),
}


@dataclass(frozen=True, slots=True)
class Phrase:
    """A description of objects: it matches any object that has all of these attributes."""

    colour: str = ""
    shape: str = ""
    place: str = ""

    def matches(self, item: SceneObject) -> bool:
        """Return True if the object has all attributes of the phrase."""
        return all(
            not required or required == value
            for required, value in ((self.colour, item.colour), (self.shape, item.shape), (self.place, item.place))
        )

    @property
    def english(self) -> str:
        """Return the phrase, without an article."""
        noun = " ".join(filter(None, (self.colour, self.shape or "object")))
        return f"{noun} at the {self.place}" if self.place else noun

    @property
    def chinese(self) -> str:
        """Return the phrase in Chinese."""
        place = f"{_CHINESE[self.place]}的" if self.place else ""
        colour = f"{_CHINESE[self.colour]}的" if self.colour else ""
        return place + colour + (_CHINESE[self.shape] if self.shape else "物体")


@dataclass(frozen=True, slots=True)
class Question:
    """A question: kind and subject; for `relation` also the side and the other object, for `verify` the claim."""

    kind: str
    phrase: Phrase
    other: Phrase = Phrase()
    claim: str = ""
    about: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """All answers that this question can have."""
        return CHOICES[self.kind]


def answer(question: Question, scene: Scene) -> str | None:
    """Return the answer, "unanswerable" if its object is not in the scene, or None if the question is ambiguous."""
    objects = [item for item in scene if question.phrase.matches(item)]
    if question.kind == "exist":
        return YES_NO[not objects]
    if question.kind == "count":
        return str(len(objects)) if str(len(objects)) in COUNTS else None
    if question.kind == "verify":
        return _verify(question, scene)
    if question.kind == "relation":
        others = [item for item in scene if question.other.matches(item)]
        if len(objects) != 1 or len(others) != 1 or objects == others:
            return None
        distance = _SIDES[question.claim](objects[0], others[0])
        return None if distance == 0 else YES_NO[distance < 0]
    if len(objects) != 1:
        return None if objects else UNANSWERABLE
    value: str = getattr(objects[0], question.kind)
    return value or None


def _verify(question: Question, scene: Scene) -> str | None:
    value = answer(Question(question.about, question.phrase), scene)
    return None if value in (None, UNANSWERABLE) else YES_NO[value != question.claim]


def english(question: Question) -> str:
    """Word a question in English."""
    name = question.phrase.english
    if question.kind == "exist":
        return f"Is there a {name} in the image?"
    if question.kind == "relation":
        return f"Is the {name} {question.claim} the {question.other.english}?"
    if question.kind == "count":
        return f"How many {_plural(name)} are there in the image?"
    if question.kind == "verify":
        return _english_claim(question)
    ask = {"colour": "What color is", "shape": "What shape is", "size": "What size is", "place": "Where is"}
    return f"What is written on the {name}?" if question.kind == "glyph" else f"{ask[question.kind]} the {name}?"


def _english_claim(question: Question) -> str:
    name = question.phrase.english
    if question.about == "count":
        return f"Is the number of {_plural(name)} {question.claim}?"
    if question.about == "glyph":
        return f"Is {question.claim} written on the {name}?"
    if question.about == "place":
        return f"Is the {name} at the {question.claim}?"
    return f"Is the {name} {question.claim}?"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def chinese(question: Question) -> str:
    """Word an attribute or counting question in Chinese.

    Raises:
        ValueError: there is no Chinese wording for this kind.
    """
    name = question.phrase.chinese
    if question.kind == "count":
        return f"图中有几个{name}？"
    endings = {
        "colour": "是什么颜色",
        "shape": "是什么形状",
        "size": "有多大",
        "place": "在哪里",
        "glyph": "上写着什么",
    }
    if question.kind not in endings:
        raise ValueError(f"no Chinese wording for {question.kind!r} questions")
    return f"{name}{endings[question.kind]}？"


def to_chinese(value: str) -> str:
    """Translate one answer; digits and letters stay."""
    return _CHINESE.get(value, value)


def propose(kind: str, scene: Scene, rng: np.random.Generator) -> Question:
    """Draw a question of a kind about a scene; it may be ambiguous (`answer` is then None)."""
    item = scene[rng.integers(len(scene))]
    if kind == "exist":
        return Question(kind, _maybe_absent(item, rng))
    if kind == "count":
        return Question(kind, Phrase(**_some(item, [(), (), ("shape",), ("colour",)], rng)))
    if kind == "relation":
        other = scene[rng.integers(len(scene))]
        return Question(kind, _full(item), _full(other), claim=str(rng.choice(SIDES)))
    if kind == "verify":
        about = str(rng.choice(["colour", "shape", "glyph", "count", "place"]))
        question = propose(about, scene, rng)
        truth = answer(question, scene)
        claim = truth if truth and rng.random() < 0.5 else str(rng.choice(CHOICES[about]))
        return Question(kind, question.phrase, claim=claim, about=about)
    names: dict[str, list[tuple[str, ...]]] = {
        "colour": [("shape",), ("place",)],
        "shape": [("colour",), ("place",)],
        "size": [("colour",), ("shape",), ("colour", "shape")],
        "place": [("colour", "shape"), ("colour",), ("shape",)],
        "glyph": [("colour", "shape"), ("colour",), ("shape",), ("place",)],
    }
    return Question(kind, Phrase(**_some(item, names[kind], rng)))


def _some(item: SceneObject, subsets: Sequence[tuple[str, ...]], rng: np.random.Generator) -> dict[str, str]:
    return {name: getattr(item, name) for name in subsets[int(rng.integers(len(subsets)))]}


def _full(item: SceneObject) -> Phrase:
    return Phrase(colour=item.colour, shape=item.shape)


def contrast(scene: Scene, rng: np.random.Generator) -> tuple[Question, Question]:
    """Draw two yes-or-no questions about a scene that differ in one word; the answers are yes, then no."""
    while True:  # a scene of one object has no relations: the kind is drawn again
        pair = _CONTRASTS[str(rng.choice(YES_NO_KINDS, p=(0.4, 0.15, 0.45)))](scene, rng)
        if [answer(question, scene) for question in pair] == ["yes", "no"]:
            return pair


def _contrast_existence(scene: Scene, rng: np.random.Generator) -> tuple[Question, Question]:
    item = scene[rng.integers(len(scene))]
    attributes = _some(item, [("colour", "shape"), ("colour",), ("shape",)], rng)
    name = str(rng.choice(list(attributes)))
    contrasting = attributes | {name: str(rng.choice(CHOICES[name]))}
    return Question("exist", Phrase(**attributes)), Question("exist", Phrase(**contrasting))


def _contrast_relation(scene: Scene, rng: np.random.Generator) -> tuple[Question, Question]:
    question = propose("relation", scene, rng)
    at = SIDES.index(question.claim)
    pair = (question, replace(question, claim=SIDES[at ^ 1]))
    return pair if answer(question, scene) == "yes" else pair[::-1]


def _contrast_claim(scene: Scene, rng: np.random.Generator) -> tuple[Question, Question]:
    question = propose("verify", scene, rng)
    truth = answer(Question(question.about, question.phrase), scene) or ""
    return replace(question, claim=truth), replace(question, claim=str(rng.choice(CHOICES[question.about])))


_CONTRASTS = {"exist": _contrast_existence, "relation": _contrast_relation, "verify": _contrast_claim}


def random_phrase(scene: Scene, rng: np.random.Generator) -> Phrase:
    """Draw a phrase that may or may not match something in a scene, as existence questions do."""
    return _maybe_absent(scene[rng.integers(len(scene))], rng)


def _maybe_absent(item: SceneObject, rng: np.random.Generator) -> Phrase:
    attributes = _some(item, [("colour", "shape"), ("colour", "shape"), ("colour",), ("shape",)], rng)
    if rng.random() < 0.7:
        name = str(rng.choice(list(attributes)))
        attributes[name] = str(rng.choice({"colour": list(COLOURS), "shape": list(SHAPES)}[name]))
    return Phrase(**attributes)


def caption(scene: Scene) -> str:
    """Describe a scene as a captioner would: all objects in reading order, with place and text."""
    return f"{phrase_caption(scene, Phrase())}."


def phrase_caption(scene: Scene, phrase: Phrase) -> str:
    """Describe every object that a phrase matches, in reading order; "nothing" if there is none."""
    objects = sorted(filter(phrase.matches, scene), key=lambda item: PLACES.index(item.place))
    return ", ".join(f"{_describe(item)} at the {item.place}" for item in objects) or NOTHING


def place_caption(scene: Scene, place: str) -> str:
    """Describe what is at one place."""
    return "".join(_describe(item) for item in scene if item.place == place) or NOTHING


def _describe(item: SceneObject) -> str:
    mark = f" marked {item.glyph}" if item.glyph else ""
    return f"a {item.size} {item.colour} {item.shape}{mark}"
