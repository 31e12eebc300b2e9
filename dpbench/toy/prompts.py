"""The prompt formats of the benchmarks, for training; a test checks that they equal the prompts of the tasks.

`format_exchange` turns a question about a scene into a prompt and the answer in one of the formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpbench.toy.questions import (
    CHOICES,
    UNANSWERABLE,
    YES_NO,
    Question,
    answer,
    chinese,
    contrast,
    english,
    propose,
    to_chinese,
)
from dpbench.toy.scenes import Scene, random_scene

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接使用所提供的选项字母作为答案回答。"
INSUFFICIENT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
OPTIONS = "There are several options:"
HINT = "Look at the picture."
DESCRIBE = "Describe the image."
LETTERS = "ABCDE"
CHOICE_FORMATS = ("mmbench_en", "mmbench_cn", "seedbench", "scienceqa")
FORMATS = ("short", "vizwiz", *CHOICE_FORMATS)
WIDE_KINDS = ("colour", "shape", "place", "glyph", "count")
_KINDS = {
    "short": tuple(CHOICES),
    "vizwiz": ("colour", "shape", "size", "place", "glyph"),
    "mmbench_en": WIDE_KINDS,
    "mmbench_cn": WIDE_KINDS,
    "seedbench": WIDE_KINDS,
    "scienceqa": (*WIDE_KINDS, "size"),
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question-answer turn: the text after the image, and the reply."""

    prompt: str
    reply: str


def describe(name: str) -> str:
    """Ask for the caption of one place, or of what a phrase names."""
    return f"Describe the {name}."


def format_options(options: Sequence[str]) -> str:
    """List options under the letters A, B, ..., one a line."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def short(text: str) -> str:
    """Return the prompt of GQA, MME, POPE, VQAv2 and TextVQA."""
    return text + SHORT


def vizwiz(text: str) -> str:
    """Return the prompt of VizWiz."""
    return text.capitalize() + INSUFFICIENT + SHORT


def mmbench(text: str, options: Sequence[str]) -> str:
    """Return the prompt of MMBench."""
    return f"{text} {OPTIONS}\n{format_options(options)}\n{LETTER}"


def mmbench_cn(text: str, options: Sequence[str]) -> str:
    """Return the prompt of MMBench-CN."""
    return f"{text}\n{format_options(options)}\n{LETTER_CN}"


def seedbench(text: str, options: Sequence[str]) -> str:
    """Return the prompt of SEED-Bench."""
    return f"{text}\n{format_options(options)}{LETTER}"


def scienceqa(text: str, options: Sequence[str], *, hint: str = "") -> str:
    """Return the prompt of ScienceQA."""
    return (f"Context: {hint}\n" if hint else "") + seedbench(text, options)


def draw_options(truth: str, kind: str, num: int, rng: np.random.Generator) -> list[str]:
    """Draw `num` distinct options in random order, the truth among them."""
    others = [choice for choice in CHOICES[kind] if choice != truth]
    options = [truth, *map(str, rng.permutation(others)[: num - 1])]
    return [options[i] for i in rng.permutation(len(options))]


def random_list(rng: np.random.Generator) -> tuple[str, list[Exchange]]:
    """Return a lettered list of options, and turns that ask for the letter of an option or the option of a letter."""
    kind = str(rng.choice([kind for kind in CHOICES if CHOICES[kind] != YES_NO]))
    most = min(4, len(CHOICES[kind]))
    num = most if rng.random() < 0.7 else int(rng.integers(2, most + 1))
    options, letter = [str(option) for option in rng.permutation(CHOICES[kind])[:num]], LETTER
    if rng.random() < 0.25:
        options, letter = [to_chinese(option) for option in options], LETTER_CN
    lettering = list(zip(LETTERS, options, strict=False))
    named = [Exchange(option + letter, name) for name, option in lettering]
    return format_options(options), named + [Exchange(f"{name}.", option) for name, option in lettering]


def random_exchange(scene: Scene, rng: np.random.Generator, form: str, kinds: Sequence[str] | None = None) -> Exchange:
    """Ask about a scene in a format; draw again while the question is ambiguous.

    Args:
        scene: the scene to ask about.
        rng: the source of randomness.
        form: one of FORMATS.
        kinds: kinds of question to draw from evenly; by default all kinds of the format.
    """
    while True:
        question = propose(str(rng.choice(kinds or _KINDS[form])), _other_scene(scene, form, rng), rng)
        truth = answer(question, scene)
        if truth is not None and (truth != UNANSWERABLE or form == "vizwiz"):
            return format_exchange(question, truth, form, rng)


def _other_scene(scene: Scene, form: str, rng: np.random.Generator) -> Scene:
    """Return the scene a question is taken from; for VizWiz sometimes another scene, so that it is unanswerable."""
    if form != "vizwiz" or rng.random() < 0.75:
        return scene
    return random_scene(rng)


def format_exchange(question: Question, truth: str, form: str, rng: np.random.Generator) -> Exchange:
    """Return a question and its answer in the words of a format."""
    if form == "short":
        return Exchange(short(english(question)), truth)
    if form == "vizwiz":
        return Exchange(vizwiz(english(question)), truth)
    return _format_choice(question, truth, form, draw_choice_options(question, truth, form, rng), rng)


def draw_choice_options(question: Question, truth: str, form: str, rng: np.random.Generator) -> list[str]:
    """Draw the options of a multiple choice: four, or in ScienceQA two to four."""
    most = min(4, len(question.choices))
    return draw_options(truth, question.kind, int(rng.integers(2, most + 1)) if form == "scienceqa" else most, rng)


def _format_choice(
    question: Question, truth: str, form: str, options: Sequence[str], rng: np.random.Generator
) -> Exchange:
    letter = LETTERS[options.index(truth)]
    if form == "mmbench_cn":
        return Exchange(mmbench_cn(chinese(question), [to_chinese(o) for o in options]), letter)
    if form == "mmbench_en":
        return Exchange(mmbench(english(question), options), letter)
    if form == "seedbench":
        return Exchange(seedbench(english(question), options), letter)
    return Exchange(scienceqa(english(question), options, hint=HINT if rng.random() < 0.5 else ""), letter)


def ask_contrasts(scene: Scene, rng: np.random.Generator, num: int) -> list[Exchange]:
    """Ask `num` pairs of yes-or-no questions that differ in one word, one true and one false, all in random order."""
    pairs = [contrast(scene, rng) for _ in range(num)]
    exchanges = [
        Exchange(short(english(question)), word) for pair in pairs for question, word in zip(pair, YES_NO, strict=True)
    ]
    return [exchanges[at] for at in rng.permutation(len(exchanges))]


def ask_reordered(
    scene: Scene, rng: np.random.Generator, num: int, forms: Sequence[str] = CHOICE_FORMATS
) -> list[Exchange]:
    """Ask one multiple-choice question `num` times, with its options in a new random order each time."""
    form, (question, truth) = str(rng.choice(forms)), _draw_open_question(scene, rng)
    options = draw_choice_options(question, truth, form, rng)
    orders = [[options[at] for at in rng.permutation(len(options))] for _ in range(num)]
    return [_format_choice(question, truth, form, order, rng) for order in orders]


def ask_in_chinese(scene: Scene, rng: np.random.Generator) -> Exchange:
    """Ask an open question in Chinese, answered in Chinese: the Chinese multiple choice needs this vocabulary."""
    question, truth = _draw_open_question(scene, rng)
    return Exchange(chinese(question), to_chinese(truth))


def ask_swapped(scene: Scene, rng: np.random.Generator, forms: Sequence[str] = CHOICE_FORMATS) -> list[Exchange]:
    """Ask a choice between two options twice, once in each order."""
    form, (question, truth) = str(rng.choice(forms)), _draw_open_question(scene, rng)
    options = draw_options(truth, question.kind, 2, rng)
    return [_format_choice(question, truth, form, order, rng) for order in (options, options[::-1])]


def _draw_open_question(scene: Scene, rng: np.random.Generator) -> tuple[Question, str]:
    """Draw a question with more than two answers, and its answer."""
    while True:
        question = propose(str(rng.choice(WIDE_KINDS)), scene, rng)
        truth = answer(question, scene)
        if truth is not None and truth != UNANSWERABLE:
            return question, truth
