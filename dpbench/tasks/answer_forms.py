"""The forms in which answers name an option's letter, or say yes or no, with examples. No torch, no lmms-eval.

`dpbench.tasks.reading` reads by this table, `dpbench list tasks --reading` prints it, and the tests read its examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """One way to state an answer.

    Attributes:
        name: in words.
        letters: examples that name B, of the options A. cat, B. dog, C. bird.
        yes: examples that say yes.
        lead: what stands before the letter or word, a regular expression; None if `letter` and `yes_or_no` look.
    """

    name: str
    letters: tuple[str, ...] = ()
    yes: tuple[str, ...] = ()
    lead: str | None = None


_NOUN = r"(?:option|choice|letter|answer|ans)"
_OPENER = r"(?:(?:sure|ok(?:ay)?|certainly|definitely|clearly|absolutely|of\s+course|well)\b\W*)?"
_NUMBER = r"(?:\d+[.)]\s*)?"
_NOT_DENIED = "".join(f"(?<!{word})" for word in ("不", "别", "不能", "不应", "不该", "不会", "不应该"))
EXAMPLE_OPTIONS: Mapping[str, str] = {"A": "cat", "B": "dog", "C": "bird"}
FORMS = (
    Form(
        "bare or first",
        ("B", "b", "B. dog", "B: dog", "B, because", "B is correct", "Option B", "1. B", "Sure! B", "选项B", "B选项"),
        ("Yes", "yes.", "YES", "Yes, there is", "y", "Certainly, yes.", "是", "是的。"),
        rf"\A\W*?{_NUMBER}{_OPENER}"
        rf"(?:(?:the\s+)?(?:correct\s+)?(?:{_NOUN}|choose|select|pick|选项|答案)\s*(?:is|是|为)?\W*)?",
    ),
    Form("bracketed", ("(B)", "B)", "[B]", "(b) dog", "【B】", "a dog (B)"), ("(yes)", "[Yes]")),
    Form(
        "bold, quoted, boxed", ("**B**", "**B.** dog", '"B"', r"$\boxed{B}$", "<b>B</b>"), ("**Yes**", '"yes"', "`Yes`")
    ),
    Form("full width", ("\uff22", "\uff08\uff22\uff09", "\uff22\uff0e"), ("\uff39\uff45\uff53",)),
    Form("a line of its own", ("It barks.\nB",), ("I see one.\nYes.",), rf"(?m:^)[^\w\n]*?{_NUMBER}"),
    Form(
        "the answer is",
        ("The answer is B.", "It barks, so the correct answer is (B)", "Answer: B", "The answer is option b"),
        ("The answer is yes.", "Answer: yes", "My answer is: **Yes**"),
        rf"\b{_NOUN}(?:\s+(?:to|for)\s+(?:this|the)\s+\w+)?\s*(?:\bis\b|\b(?:should|must|would)\s+be\b|:)\W*"
        rf"(?:(?:the\s+)?{_NOUN}\b\W*)?",
    ),
    Form(
        "I choose, it is, so",
        ("I would choose B.", "I think it is B", "It must be B", "It barks. So B.", "Not A but B"),
        ("I would say yes.", "I see one, so yes."),
        r"(?:\bI(?:'d|'ll|'m|\s+would|\s+will|\s+am)?\s+"
        r"(?:choose|select|pick|say|think|believe|go(?:ing)?\s+(?:with|for))"
        r"|\b(?:it|that|this)(?:'s|\s+is|\s+(?:must|should|would)\s+be)"
        r"|\b(?:so|thus|therefore|hence|not\W+[A-H]\W+but))\b\W*(?:(?:option|choice)\s*)?",
    ),
    Form(
        "the Chinese cues",
        (
            "答案是B。",
            "正确答案是B。因为A不对",
            "答案:B",
            "答案应为B",
            "应该选B",
            "选择B",
            "因此B。",
            "我认为是B",
            "不是A，是B",
            "並非A，而是B",
        ),
        ("答案是:是的。", "所以,是的。"),
        rf"(?:答案?|正解|正确的?选项)\s*(?:应该|应当|应)?\s*(?:是|为|:)\W*(?:选项?)?\s*"
        rf"|{_NOT_DENIED}选(?:择|项)?(?:的?是|为)?\W*|(?:因此|所以|故|即)\W*"
        rf"|(?:\A|[,.;。]\s*|而|即|就|认为|觉得|肯定|一定|{_NOT_DENIED}(?:应该|应当|应))[是为](?=\W*[A-Ha-h])\W*",
    ),
    Form(
        "short for the question, or behind a comma at the end", (), ("There is.", "It is", "In the image, yes."), None
    ),
    Form("is the right one", ("I am sure that B is correct.", "选项里B是正确的"), (), None),
    Form("the option's text, if no letter is named", ("dog", "It is a dog."), (), None),
)
"""What is read, by all tasks with letters (ScienceQA, SEED-Bench, MMBench) and with yes or no (POPE, MME)."""
NONE_LETTERS = ("Both A and B", "A or B", "A, B", "cat or dog", "A or maybe B", "A is wrong", "不选B", "A dog",
                "Both", "E", "A. So the answer is B.", "I am not sure", "maybe a dog", "B-flat", "")  # fmt: skip
"""Answers that name no option of the example."""
NONE_YES = ("yes or no", "Yes and no", "yes/no", "No, yes.", "Yes, so the answer is no.", "maybe", "I am not sure",
            "no idea", "yesterday", "There is a dog", "")  # fmt: skip
"""Answers that say neither yes nor no."""
