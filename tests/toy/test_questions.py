"""Questions: answers follow from the scene; every text is balanced over its answers; prompts are what the tasks ask."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from places import TOY_DATA

from dpbench import tasks
from dpbench.tasks import lmms_eval_adapter
from dpbench.toy.balanced import add_questions, balanced_set
from dpbench.toy.prompts import (
    FORMATS,
    LETTERS,
    mmbench,
    mmbench_cn,
    random_exchange,
    scienceqa,
    seedbench,
    short,
    vizwiz,
)
from dpbench.toy.questions import (
    KINDS,
    UNANSWERABLE,
    Phrase,
    Question,
    answer,
    caption,
    chinese,
    english,
    place_caption,
)
from dpbench.toy.scenes import Scene, SceneObject, is_held_out, training_scene

SCENE: Scene = (
    SceneObject("top left", "red", "circle", "large", "3"),
    SceneObject("center", "blue", "square", "small"),
    SceneObject("right", "blue", "cross", "large", "K"),
)
RED, BLUE, CROSS = Phrase(colour="red"), Phrase(colour="blue"), Phrase(shape="cross")


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        (Question("exist", Phrase("red", "circle")), "yes"),
        (Question("exist", Phrase("red", "square")), "no"),
        (Question("count", Phrase()), "3"),
        (Question("count", BLUE), "2"),
        (Question("count", Phrase(colour="white")), None),
        (Question("colour", CROSS), "blue"),
        (Question("shape", BLUE), None),
        (Question("shape", Phrase(colour="white")), UNANSWERABLE),
        (Question("shape", Phrase(place="center")), "square"),
        (Question("size", RED), "large"),
        (Question("place", RED), "top left"),
        (Question("glyph", RED), "3"),
        (Question("glyph", Phrase(shape="square")), None),
        (Question("relation", RED, CROSS, claim="to the left of"), "yes"),
        (Question("relation", RED, CROSS, claim="to the right of"), "no"),
        (Question("relation", RED, CROSS, claim="above"), "yes"),
        (Question("relation", Phrase(shape="square"), CROSS, claim="above"), None),
        (Question("relation", RED, RED, claim="above"), None),
        (Question("verify", RED, claim="circle", about="shape"), "yes"),
        (Question("verify", RED, claim="cross", about="shape"), "no"),
        (Question("verify", BLUE, claim="cross", about="shape"), None),
        (Question("verify", Phrase(), claim="3", about="count"), "yes"),
    ],
)
def test_answers_follow_from_the_scene(question: Question, wanted: str | None) -> None:
    assert answer(question, SCENE) == wanted


def test_wording() -> None:
    assert english(Question("exist", Phrase("red", "circle"))) == "Is there a red circle in the image?"
    assert english(Question("count", CROSS)) == "How many crosses are there in the image?"
    assert english(Question("relation", RED, BLUE, claim="above")) == "Is the red object above the blue object?"
    assert chinese(Question("colour", Phrase(place="top left"))) == "左上的物体是什么颜色？"
    with pytest.raises(ValueError, match="no Chinese wording"):
        chinese(Question("exist", RED))


def test_captions_name_every_object_and_no_patch() -> None:
    assert caption(SCENE) == (
        "a large red circle marked 3 at the top left, a small blue square at the center, "
        "a large blue cross marked K at the right."
    )
    assert place_caption(SCENE, "center") == "a small blue square"
    assert place_caption(SCENE, "bottom") == "nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_asks_each_text_once_per_answer_on_held_out_scenes(kind: str) -> None:
    rng = np.random.default_rng(0)
    group = add_questions(balanced_set((kind,), rng), KINDS, rng, 3)
    assert all(is_held_out(scene) for scene in group.scenes)
    texts: dict[Question, Counter[str]] = {}
    for asked in group.questions:
        assert answer(asked.question, group.scenes[asked.scene]) == asked.truth
        texts.setdefault(asked.question, Counter())[asked.truth] += 1
    for question, counts in texts.items():
        assert dict(counts) == dict.fromkeys(question.choices, 1)


@pytest.mark.parametrize("form", FORMATS)
def test_training_exchanges_are_answered_right(form: str) -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        exchange = random_exchange(training_scene(rng), rng, form)
        if form in ("short", "vizwiz"):
            assert exchange.reply
        else:
            assert exchange.reply in LETTERS
            assert f"\n{exchange.reply}. " in exchange.prompt


def asked_shortly(doc: Mapping[str, Any]) -> str:
    return short(doc["question"].removesuffix(" Please answer yes or no."))


TRAINED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    **dict.fromkeys(("gqa", "mme", "pope", "vqav2", "textvqa"), asked_shortly),
    "vizwiz": lambda doc: vizwiz(doc["question"]),
    "mmbench_en": lambda doc: mmbench(doc["question"], [doc[letter] for letter in "ABCD"]),
    "mmbench_cn": lambda doc: mmbench_cn(doc["question"], [doc[letter] for letter in "ABCD"]),
    "seedbench": lambda doc: seedbench(doc["question"], [doc[f"choice_{letter}"] for letter in "abcd"]),
    "scienceqa": lambda doc: scienceqa(doc["question"], doc["choices"], hint=doc["hint"]),
}


@pytest.mark.parametrize("name", list(tasks.TASKS))
def test_a_training_prompt_is_word_for_word_what_its_task_asks(name: str) -> None:
    built = lmms_eval_adapter.build(name, TOY_DATA, limit=None)
    docs = built.task.test_docs_no_media()
    for request in built.requests:
        assert request.text == TRAINED[name](docs[request.doc_id])
