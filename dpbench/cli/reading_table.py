"""Format how answers are read: `dpbench list tasks --reading`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import east_asian_width

from dpbench.tasks import answer_forms, reading_of_llava

READERS = {
    "a letter": ("mmbench_en", "mmbench_cn", "scienceqa", "seedbench", "seedbench_all"),
    "yes or no": ("pope", "mme"),
    "words, in any case and without punctuation": ("gqa",),
    "words, as EvalAI's VQA evaluation compares them": ("vqav2", "vqav2_val_10k", "textvqa", "vizwiz"),
    "nothing: its server reads it": ("vqav2_testdev",),
}
"""What is read of an answer, and the benchmarks that it is read for."""


INDENT = " " * 6


def format_readings(width: int) -> str:
    """Return the forms in which an answer is read, for each kind of answer, and how LLaVA's evaluation reads it.

    Args:
        width: of the terminal, in characters.
    """
    kinds = [_entry(kind, ", ".join(names).split(), " ", width) for kind, names in READERS.items()]
    options = ", ".join(f"{letter}. {text}" for letter, text in answer_forms.EXAMPLE_OPTIONS.items())
    forms = [_examples(form.name, (*form.letters, *form.yes), width) for form in answer_forms.FORMS]
    none = [
        _examples("no letter", answer_forms.NONE_LETTERS, width),
        _examples("neither yes nor no", answer_forms.NONE_YES, width),
    ]
    llava = [_entry(name, text.split(), " ", width) for name, text in reading_of_llava.READINGS.items()]
    parts = {
        "What is read of an answer": kinds,
        f"Read as B, of the options {options}, or as yes (and no likewise)": forms,
        "Read as none, which is wrong": none,
        "With --reading llava, or --protocol llava, otherwise in": llava,
    }
    return "\n\n".join("\n".join([head, *lines]) for head, lines in parts.items())


def _examples(name: str, answers: Sequence[str], width: int) -> str:
    """Return a form with answers side by side, each in quotes and on one line."""
    return _entry(name, ["'" + answer.replace("\n", "\\n") + "'" for answer in answers], "   ", width)


def _entry(name: str, items: Sequence[str], gap: str, width: int) -> str:
    """Return a name, and items below it on lines that fit, none broken; Chinese characters are two columns wide."""
    lines = [INDENT + items[0]]
    for item in items[1:]:
        if _columns(lines[-1] + gap + item) <= width:
            lines[-1] += gap + item
        else:
            lines.append(INDENT + item)
    return "\n".join([f"  {name}", *lines])


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
