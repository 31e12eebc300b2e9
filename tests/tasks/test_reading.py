"""One reader for all tasks: every form of the printed table counts in each task that it is for, and hedges in none."""

import random
from functools import cache
from typing import Any

import pytest
from places import TOY_DATA

from dpbench import tasks
from dpbench.cli.reading_table import READERS, format_readings
from dpbench.tasks import aggregators, answer_forms, lmms_eval_adapter, reading, reading_of_llava

OPTIONS = answer_forms.EXAMPLE_OPTIONS
LETTER_FORMS = [answer for form in answer_forms.FORMS for answer in form.letters]
YES_FORMS = [answer for form in answer_forms.FORMS for answer in form.yes]
CHOICES = {"choice_a": "cat", "choice_b": "dog", "choice_c": "bird", "choice_d": None}
DOCS: dict[str, dict[str, Any]] = {
    "scienceqa": {"question": "Which?", "choices": list(OPTIONS.values()), "answer": 1, "hint": ""},
    "seedbench": {"question": "Which?", "answer": "B", "data_type": "image", "question_id": "1", **CHOICES},
    "mmbench_en": {"index": 7, "question": "Which?", "hint": "nan", "answer": "B", **OPTIONS, "D": "nan",
                   "category": "objects", "L2-category": "x", "source": "s", "split": "dev"},
    "pope": {"question_id": "1", "question": "Is there a dog?", "answer": "yes", "category": "random"},
    "mme": {"question_id": "a", "category": "color", "answer": "Yes", "question": "Is it red?"},
}  # fmt: skip
DOCS |= {"mmbench_cn": DOCS["mmbench_en"], "seedbench_all": DOCS["seedbench"]}


@cache
def task(name: str, how: str = "first-word") -> Any:
    return lmms_eval_adapter.build(name, TOY_DATA, limit=4, reading=how).task


def is_right(name: str, said: str, how: str = "first-word", **changed: Any) -> bool:
    """Return whether what was said counts, as the task's own YAML and aggregator have it."""
    result = dict(task(name, how).process_results(DOCS[name] | changed, [said]))
    if name == "pope":
        return aggregators.is_right(result["pope_accuracy"])
    if name == "mme":
        return bool(result["mme_total_score"]["score"])
    metric = tasks.find(name).metric
    assert metric is not None
    return bool(aggregators.metrics(name, [result])[metric])


@pytest.mark.parametrize("name", READERS["a letter"])
def test_a_form_of_a_letter_counts_in_every_task_and_a_hedge_in_none(name: str) -> None:
    assert [answer for answer in LETTER_FORMS if not is_right(name, answer)] == []
    wrong = {"answer": 0 if name == "scienceqa" else "A"}
    assert [answer for answer in LETTER_FORMS if is_right(name, answer, **wrong)] == []
    assert [answer for answer in answer_forms.NONE_LETTERS if is_right(name, answer)] == []


@pytest.mark.parametrize("name", READERS["yes or no"])
def test_a_form_of_yes_counts_in_every_task_and_a_hedge_in_none(name: str) -> None:
    assert [answer for answer in YES_FORMS if not is_right(name, answer)] == []
    assert [answer for answer in YES_FORMS if is_right(name, answer, answer="no")] == []
    for truth in ("yes", "no"):
        assert [answer for answer in answer_forms.NONE_YES if is_right(name, answer, answer=truth)] == []


def test_every_form_has_examples_and_none_of_them_reads_as_anything_else() -> None:
    assert [form.name for form in answer_forms.FORMS if not form.letters + form.yes] == []
    assert {reading.letter(answer, OPTIONS) for answer in LETTER_FORMS} == {"B"}
    assert {reading.letter(answer, OPTIONS) for answer in answer_forms.NONE_LETTERS} == {None}
    assert {reading.yes_or_no(answer) for answer in YES_FORMS} == {"yes"}
    assert {reading.yes_or_no(answer) for answer in answer_forms.NONE_YES} == {None}


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("The answer is B. Note that A is wrong.", "B"), ("(A) is wrong, (B) is right", "B"), ("A. not B", "A"),
     ("\u4e0d\u5e94\u8be5\u9009A,\u5e94\u8be5\u9009B", "B"), ("A\u662f\u9519\u8bef\u7684,\u9009B", "B"),
     ("\u9009\u9879A\u548cB\u90fd\u5bf9", None), ("A\u4e0d\u5bf9", None), ("The answer is not B.", None),
     ("The answer is either A or B.", None), ("Neither A nor B", None), ("A/B", None), ("A) cat\nB) dog", None),
     ("The answer is A. The answer is B.", None), ("Option A or option B", None), ("B?", None), ("C's", None),
     ("A.M.", None), ("a.m.", None), ("C-clamp", None), ("Cannot", None), ("A fine animal", None), ("B cell", None),
     ("A dog", None), ("a dog", "B"), ("A cat", "A"), ("B dog", "B"), ("It is not a dog", None),
     ("a cat or a dog", None), ("A cat or a dog", None),
     ("A - cat", "A"), ("The answer is a", "A"), ("the answer is a dog", "B"), ("D", None), ("D. dog", None)],
)  # fmt: skip
def test_letters_by_hand(answer: str, wanted: str | None) -> None:
    assert reading.letter(answer, OPTIONS) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("No", "no"), ("no, there is none", "no"), ("**No**, there is none", "no"), ("The answer is no.", "no"),
     ("\u4e0d\u662f", "no"), ("\u6ca1\u6709\u3002", "no"), ("N", "no"), ("\uff2e\uff4f\uff0e", "no"),
     ("Therefore, no.", "no"), ("Yes. There is no doubt.", "yes"), ("Yes, no doubt", "yes"), ("Yes?", None),
     ("There is no dog.", None), ("nothing", None), ("Not really", None), ("no-one", None), ("no doubt", None),
     ("It is no dog", None), ("Yes.\nNo.", None), ("The answer is yes or no", None), ("\u662f\u5426", None)],
)  # fmt: skip
def test_yes_and_no_by_hand(answer: str, wanted: str | None) -> None:
    assert reading.yes_or_no(answer) == wanted


READ_BY_HAND: dict[str | None, tuple[str, ...]] = {
    "B": (
        "B, not A", "B instead of A", "B rather than C", "B but not A", "I'd go with B", "That would be B", "Ans: B",
        "The correct option is letter B", "It is not A but B", "It's not A, it's B", "A is wrong, B is right",
        "A: wrong. B: right", "B is the answer", "B seems correct", "Choose B", "OK: B", "<B>", "<answer>B</answer>",
        "\\(\\boxed{B}\\)", "$\\boxed{\\text{B}}$", "B. A cat is not there.", "A. cat\nB. dog\nC. bird\nAnswer: B",
        "『B』", "《B》", "选B不选A", "选B不是A", "正确答案:B。A不对", "答案不是A,而是B", "應該選B", "選項B", "答案為B",
        "应该是B", "肯定是B", "答:B", "正解:B", "B正确", "不是A而是B", "\u200bB", "\r\nB\r\n", "即B",
        "It is not a cat, it is a dog",
    ),
    None: (
        "not B", "It isn't B", "The answer cannot be B", "Definitely not B", "Anything but B", "I'm not sure but B",
        "Either B or C", "A man", "A woman is standing", "A is for apple", "A. cat B. dog C. bird", "A. cat or B. dog",
        "1. A\n2. B", "All of the above", "Because", "I", "ABC", "C++", "Vitamin C", "I'd say maybe B", "It may be B",
        "不是B", "并非B", "答案不是B", "A还是B", "A跟B", "A或B", "是A吗", "可能是B", "应该不是B", "不应该是B",
    ),
}  # fmt: skip
"""What a careful person reads in an answer to the example."""


@pytest.mark.parametrize(
    ("wanted", "answer"), [(letter, each) for letter, all_ in READ_BY_HAND.items() for each in all_]
)
def test_letters_are_read_as_a_careful_person_reads_them(answer: str, wanted: str | None) -> None:
    assert reading.letter(answer, OPTIONS) == wanted


SAID_BY_HAND: dict[str | None, tuple[str, ...]] = {
    "yes": ("Yup", "Yes, yes.", "Definitely yes", "It is.", "They are", "A: Yes", "答:是", "對", "是的,有一只狗",
            "<b>Yes</b>"),
    "no": ("Nah", "No no no", "no, there is not", "There isn't.", "It is not.", "Unfortunately, no.", "Is there? No.",
           "不对", "不,没有", "不是的,没有", "沒有", "答案:否", "回答:否", "No, but there is a cat"),
    None: ("Yes, but no", "It is not clear", "There is not a dog", "I am not sure, yes", "No. 5", "No.5",
           "No one knows", "No problem", "是不是", "unanswerable", "not no", "The answer is not yes",
           "It is a dog, no?"),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "answer"), [(word, each) for word, all_ in SAID_BY_HAND.items() for each in all_])
def test_yes_and_no_are_read_as_a_careful_person_reads_them(answer: str, wanted: str | None) -> None:
    assert reading.yes_or_no(answer) == wanted


def test_of_two_options_one_inside_the_other_the_longer_is_named() -> None:
    options = {"A": "red", "B": "dark red", "C": "None of the above", "D": "red"}
    assert reading.letter("It is dark red.", options) == "B"
    assert reading.letter("red", options) is None
    assert reading.letter("none of the above.", options) == "C"
    assert reading.letter("reddish", {"A": "red", "B": "blue"}) is None
    assert reading.letter("\u662f\u4e09\u89d2\u5f62", {"A": "\u4e09\u89d2\u5f62", "B": "\u5706"}) == "A"
    assert reading.letter("\u4e0d\u662f\u5706", {"A": "\u4e09\u89d2\u5f62", "B": "\u5706"}) is None


def test_any_text_is_read_without_an_error_and_only_as_an_option() -> None:
    rng = random.Random(0)
    parts = [*"ABCDEIabc .,:;()[]*'\"\n-/?\\{}$", "yes", "no", "the answer is", "\u9009", "\u662f", "\u4e0d", "or"]
    for _ in range(3000):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(12)))
        assert reading.letter(text, OPTIONS) in {None, "A", "B", "C"}
        assert reading.yes_or_no(text) in {None, "yes", "no"}


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [("scienceqa", ["B", "B. dog", "It barks. The answer is B."],
      ["b", "B.", "(B)", "B)", "**B**", "dog", "the answer is B.", "The answer is B", "The answer is (B).",
       "The answer is A. The answer is B."]),
     ("seedbench", ["B", " B "], ["b", "B.", "(B)", "B. dog", "The answer is B."]),
     ("seedbench_all", ["B"], ["b", "B."]),
     ("mme", ["Yes", "y", "Yes, it is", "yesterday"], ["**Yes**, it is", "The answer is yes."]),
     ("mmbench_en", ["B", "b", "**B**", "dog"], ["Both A and B"]),
     ("pope", ["yes", "", "There is", "The answer is yes."], ["no", "There is not"])],
)  # fmt: skip
def test_llavas_reading_of_each_task(name: str, right: list[str], wrong: list[str]) -> None:
    assert [answer for answer in right if not is_right(name, answer, "llava")] == []
    assert [answer for answer in wrong if is_right(name, answer, "llava")] == []


def test_the_printed_table_names_every_task_and_form_and_fits_a_terminal() -> None:
    text = format_readings(80)
    assert sorted(name for names in READERS.values() for name in names) == sorted(tasks.ALL)
    assert all(name in text for name in (*tasks.ALL, *reading_of_llava.READINGS))
    assert all(form.name in text for form in answer_forms.FORMS)
    assert all(f"'{answer}'" in text for answer in (*LETTER_FORMS, *YES_FORMS) if "\n" not in answer)
    assert max(map(len, text.splitlines())) <= 80
    assert "'It barks.\\nB'" in text
