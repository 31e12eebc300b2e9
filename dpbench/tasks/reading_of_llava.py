"""How the evaluations that LLaVA publishes its scores with read an answer: `reading: llava`. No torch, no lmms-eval.

MMBench's answers are read by its server, with a language model, so there is nothing here for it.
"""

from __future__ import annotations

import re

DENIALS = frozenset(("No", "no", "not"))
"""The words that POPE's evaluation looks for."""
LETTER_AND_TEXT = re.compile(r"([A-E])\. ")
STATED_LETTER = re.compile(r"The answer is ([A-Z]).", re.DOTALL)

READINGS = {
    "pope": "no if the first sentence has No, no or not as a word, else yes, even if it is empty",
    "mme": "a yes or a no in the first four characters, in any case; y or n alone",
    "scienceqa": 'the bare capital, "B. " and a text, or one "The answer is B" with a character behind it',
    "seedbench": "the bare capital only",
}
"""By benchmark, in words; the others are read as ever."""


def yes_or_no(answer: str) -> str:
    """Return "no" if the first sentence of an answer denies, else "yes" (POPE)."""
    sentence = answer.split(".", 1)[0].replace(",", "")
    return "no" if DENIALS & set(sentence.split(" ")) else "yes"


def scienceqa_letter(answer: str) -> str | None:
    """Return the bare letter, the letter before a full stop, a space and a text, or the one that the answer is."""
    if re.fullmatch("[A-E]", answer):
        return answer
    if match := LETTER_AND_TEXT.match(answer):
        return match[1]
    stated = STATED_LETTER.findall(answer)
    return str(stated[0]) if len(stated) == 1 else None


def seedbench_letter(answer: str) -> str | None:
    """Return the answer if it is a bare capital."""
    return answer if re.fullmatch("[A-D]", answer) else None
