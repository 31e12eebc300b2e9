"""The rows of the toy data root: ten small benchmarks in the columns of the hub repositories.

Every scene is held out from training, every question text is balanced over its answers (`dpbench.toy.balanced`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as Pillow

from dpbench.toy.balanced import BalancedSet, add_questions, balanced_set, collect_sets
from dpbench.toy.prompts import HINT, LETTERS, WIDE_KINDS
from dpbench.toy.questions import UNANSWERABLE, Phrase, Question, answer, chinese, english, to_chinese
from dpbench.toy.scenes import Scene, draw

Row = dict[str, Any]
JPEG_QUALITY = 92
NUM_VIDEOS, NUM_FRAMES = 4, 8
"""Video questions of SEED-Bench, and images of each."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question of one image, ready to be laid out in a benchmark's columns."""

    image: bytes
    image_id: str
    question: Question
    truth: str
    options: tuple[str, ...] = ()


def jpeg(scene: Scene, rng: np.random.Generator) -> bytes:
    """Draw one scene and encode it."""
    buffer = io.BytesIO()
    Pillow.fromarray(draw([scene], rng)[0]).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def draw_items(groups: list[BalancedSet], rng: np.random.Generator, options: tuple[int, int] = (0, 0)) -> list[Item]:
    """Draw every set's scenes once and list its questions, sorted by image.

    Args:
        groups: the balanced sets.
        rng: textures, jitter, order of options.
        options: smallest and largest number of options a question's answers are offered as; 0 for none.
    """
    listed: list[Item] = []
    for number, group in enumerate(groups):
        images = [jpeg(scene, rng) for scene in group.scenes]
        offered: dict[Question, tuple[str, ...]] = {}
        for item in group.questions:
            if options[1]:
                truths = [other.truth for other in group.questions if other.question == item.question]
                offered.setdefault(item.question, tuple(truths[i] for i in rng.permutation(len(truths))))
        listed += [
            Item(images[a.scene], f"{number:04d}{a.scene}", a.question, a.truth, offered.get(a.question, ()))
            for a in sorted(group.questions, key=lambda a: a.scene)
        ]
    return listed


def _sets(
    rng: np.random.Generator, num: int, kinds: tuple[str, ...], *, more: int = 0, also: tuple[str, ...] = ()
) -> list[BalancedSet]:
    def make() -> Iterator[BalancedSet]:
        while True:
            yield add_questions(balanced_set(kinds, rng, also=also), kinds, rng, more)

    return collect_sets(num, make())


def _choice_sets(
    rng: np.random.Generator, num: int, kinds: tuple[str, ...], sizes: tuple[int, ...]
) -> list[BalancedSet]:
    def make() -> Iterator[BalancedSet]:
        while True:
            yield balanced_set(kinds, rng, answers=int(rng.choice(sizes)))

    return collect_sets(num, make())


OPEN_KINDS = ("exist", "relation", "verify", "colour", "shape", "size", "place")


def gqa(rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """Return GQA's instructions and images."""
    items = draw_items(_sets(rng, 200, OPEN_KINDS, more=3), rng)
    images = [{"id": image_id, "image": image} for image_id, image in {i.image_id: i.image for i in items}.items()]
    rows = [
        {
            "id": f"{n:06d}",
            "imageId": i.image_id,
            "question": english(i.question),
            "answer": i.truth,
            "fullAnswer": i.truth,
            "isBalanced": True,
        }
        for n, i in enumerate(items)
    ]
    return rows, images


def mmbench(rng: np.random.Generator) -> tuple[list[Row], list[Row]]:
    """Return MMBench in English and Chinese: four rows a question, its options rotated (index + k * 1e6)."""
    items = draw_items(_choice_sets(rng, 72, WIDE_KINDS, (4,)), rng, (4, 4))
    rows = []
    for words, translate in ((english, str), (chinese, to_chinese)):
        rows.append(
            [
                {
                    "index": n + turn * 1_000_000,
                    "question": words(i.question),
                    "hint": "nan",
                    "answer": LETTERS[(i.options.index(i.truth) - turn) % 4],
                    **{LETTERS[k]: translate(i.options[(k + turn) % 4]) for k in range(4)},
                    "category": i.question.kind,
                    "L2-category": "reading" if i.question.kind == "glyph" else "perception",
                    "source": "scenes",
                    "split": "dev",
                    "image": i.image,
                }
                for n, i in enumerate(items)
                for turn in range(4)
            ]
        )
    return rows[0], rows[1]


_MME = {"existence": "exist", "count": "count", "position": "relation", "color": "colour", "OCR": "glyph"}


def mme(rng: np.random.Generator) -> list[Row]:
    """Return MME: two questions an image, one yes and one no; each text is right on one image of two."""
    rows: list[Row] = []
    for number in range(10):
        for category, kind in _MME.items():
            first, second, scenes = _mme_pair(kind, rng)
            for scene, answers in zip(scenes, (("Yes", "No"), ("No", "Yes")), strict=True):
                image = jpeg(scene, rng)
                rows += [
                    {
                        "question_id": f"{category}/{number:02d}{answers[0]}.jpg",
                        "image": image,
                        "question": f"{english(question)} Please answer yes or no.",
                        "answer": word,
                        "category": category,
                    }
                    for question, word in zip((first, second), answers, strict=True)
                ]
    return rows


def _mme_pair(kind: str, rng: np.random.Generator) -> tuple[Question, Question, tuple[Scene, Scene]]:
    """Return two yes-no questions and two scenes: each question is true in one scene and false in the other."""
    while True:
        group = balanced_set((kind,), rng, answers=2)
        (a, b), (one, two) = group.scenes, group.questions
        if kind in ("colour", "glyph", "count"):
            first, second = (Question("verify", one.question.phrase, claim=t.truth, about=kind) for t in (one, two))
        elif kind == "relation":
            first, second = (
                one.question,
                Question("relation", one.question.other, one.question.phrase, one.question.claim),
            )
        else:
            first, second = one.question, _other_existence(a, b, one.question, rng)
        scenes = (a, b) if answer(first, a) == "yes" else (b, a)
        if [answer(q, s) for s in scenes for q in (first, second)] == ["yes", "no", "no", "yes"]:
            return first, second, scenes


def _other_existence(a: Scene, b: Scene, question: Question, rng: np.random.Generator) -> Question:
    present = [item for item in (*a, *b) if not question.phrase.matches(item)] or list(a)
    item = present[rng.integers(len(present))]
    return Question("exist", Phrase(colour=item.colour, shape=item.shape))


def pope(rng: np.random.Generator) -> list[Row]:
    """Return POPE: questions on existence, half with yes, half with no."""
    items = draw_items(_sets(rng, 240, ("exist",), more=3), rng)
    return [
        {
            "id": str(n),
            "question_id": str(n + 1),
            "question": english(i.question),
            "answer": i.truth,
            "image_source": i.image_id,
            "image": i.image,
            "category": ("adversarial", "popular", "random")[n % 3],
        }
        for n, i in enumerate(items)
    ]


def scienceqa(rng: np.random.Generator) -> list[Row]:
    """Return ScienceQA: two to four choices, every other question text with a hint."""
    items = draw_items(_choice_sets(rng, 200, (*WIDE_KINDS, "size"), (2, 3, 4)), rng, (2, 4))
    return [
        {
            "image": i.image,
            "question": english(i.question),
            "choices": list(i.options),
            "answer": i.options.index(i.truth),
            "hint": HINT if len(i.question.phrase.english) % 2 else "",
            "task": "closed choice",
            "subject": "natural science",
            "topic": i.question.kind,
        }
        for i in items
    ]


def vqav2(rng: np.random.Generator) -> list[Row]:
    """Return VQAv2: ten answers per question; one annotator in ten is not sure."""
    items = draw_items(_sets(rng, 220, ("exist", "relation", "count", "colour", "shape"), more=2), rng)
    types = {"exist": "yes/no", "relation": "yes/no", "count": "number"}
    return [
        {
            "question_type": english(i.question).split(" the ")[0].lower(),
            "multiple_choice_answer": i.truth,
            "answers": [
                {"answer": word, "answer_confidence": "yes", "answer_id": k + 1}
                for k, word in enumerate(_ten_answers(i.truth, n))
            ],
            "image_id": int(i.image_id),
            "answer_type": types.get(i.question.kind, "other"),
            "question_id": n,
            "question": english(i.question),
            "image": i.image,
        }
        for n, i in enumerate(items)
    ]


def _ten_answers(truth: str, number: int) -> list[str]:
    """Return the answers of ten annotators: nine agree, one gives an answer that is wrong for every question."""
    words = [truth] * 10
    words[number % 10] = "not sure"
    return words


def textvqa(rng: np.random.Generator) -> list[Row]:
    """Return TextVQA: what is written on an object."""
    items = draw_items(_sets(rng, 190, ("glyph",), more=2), rng)
    return [
        {
            "image_id": i.image_id,
            "question_id": n,
            "question": english(i.question),
            "image": i.image,
            "image_width": 96,
            "image_height": 96,
            "answers": _ten_answers(i.truth, n),
            "ocr_tokens": [i.truth],
            "set_name": "val",
        }
        for n, i in enumerate(items)
    ]


def seedbench(rng: np.random.Generator) -> list[Row]:
    """Return SEED-Bench: four choices; a few questions on videos, which image tasks must skip.

    A video has eight frames, as on the hub. Only its middle one shows what the question asks about.
    """
    items = draw_items(_choice_sets(rng, 200, WIDE_KINDS, (4,)), rng, (4, 4))
    rows = [_seed_row(n, i, "image", [i.image]) for n, i in enumerate(items)]
    images = list(dict.fromkeys(i.image for i in items))
    for i in items[:NUM_VIDEOS]:
        start = images.index(i.image) - NUM_FRAMES // 2
        frames = [images[at % len(images)] for at in range(start, start + NUM_FRAMES)]
        rows.append(_seed_row(len(rows), i, "video", frames))
    return rows


def _seed_row(number: int, item: Item, data_type: str, frames: list[bytes]) -> Row:
    return {
        "answer": LETTERS[item.options.index(item.truth)],
        **{f"choice_{letter}": option for letter, option in zip("abcd", item.options, strict=True)},
        "data_id": item.image_id,
        "data_type": data_type,
        "question": english(item.question),
        "question_id": str(number),
        "question_type_id": WIDE_KINDS.index(item.question.kind) + 1,
        "image": frames,
        "segment": [],
    }


def vizwiz(rng: np.random.Generator) -> list[Row]:
    """Return VizWiz: each question is unanswerable on one scene of its set."""
    kinds = ("colour", "shape", "size", "place", "glyph")
    items = draw_items(_sets(rng, 200, kinds, also=(UNANSWERABLE,)), rng)
    return [
        {
            "question_id": f"VizWiz_val_{n:08d}.jpg",
            "image": i.image,
            "question": english(i.question),
            "answers": _ten_answers(i.truth, n),
            "category": "unanswerable" if i.truth == UNANSWERABLE else "other",
        }
        for n, i in enumerate(items)
    ]


def tables(seed: int) -> dict[str, list[Row]]:
    """Return every file of the data root: its path without the extension, and its rows."""
    builders: dict[str, Callable[[np.random.Generator], Any]] = {
        "GQA": gqa, "MMBench": mmbench, "MME": mme, "POPE": pope, "ScienceQA": scienceqa, "VQAv2": vqav2,
        "textvqa": textvqa, "SEED-Bench": seedbench, "VizWiz-VQA": vizwiz,
    }  # fmt: skip
    rows = {name: build(np.random.default_rng([seed, n])) for n, (name, build) in enumerate(builders.items())}
    return {
        "GQA/testdev_balanced_instructions/testdev": rows["GQA"][0],
        "GQA/testdev_balanced_images/testdev": rows["GQA"][1],
        "MMBench/en/dev": rows["MMBench"][0],
        "MMBench/cn/dev": rows["MMBench"][1],
        "MME/data/test": rows["MME"],
        "POPE/data/test": rows["POPE"],
        "ScienceQA/ScienceQA-IMG/test": rows["ScienceQA"],
        "VQAv2/data/validation": rows["VQAv2"],
        "textvqa/data/validation": rows["textvqa"],
        "SEED-Bench/data/test": rows["SEED-Bench"],
        "VizWiz-VQA/data/val": rows["VizWiz-VQA"],
    }
