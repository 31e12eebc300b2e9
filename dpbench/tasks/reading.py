"""The one reader of answers that name an option's letter, or say yes or no. No torch, no lmms-eval.

An answer that names two letters, or both yes and no, names none: an unreadable answer is wrong, never a guess.
`FORMS` is the table of what is read; `dpbench list tasks --reading` prints it, and the tests read its examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
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


_NOUN = r"(?:option|choice|letter|answer)"
_NOT_DENIED = "".join(f"(?<!{word})" for word in ("不", "别", "不能", "不应", "不该", "不会", "不应该"))
EXAMPLE_OPTIONS: Mapping[str, str] = {"A": "cat", "B": "dog", "C": "bird"}
FORMS = (
    Form(
        "bare or first",
        ("B", "b", "B. dog", "B: dog", "B, because", "B is correct", "Option B", "选项B", "B选项"),
        ("Yes", "yes.", "YES", "Yes, there is", "y", "是", "是的。"),
        rf"\A\W*?(?:(?:the\s+)?(?:correct\s+)?(?:{_NOUN}|选项|答案)\s*(?:is|是|为)?\W*)?",
    ),
    Form("bracketed", ("(B)", "B)", "[B]", "(b) dog", "【B】", "a dog (B)"), ("(yes)", "[Yes]")),
    Form("bold, quoted, boxed", ("**B**", "**B.** dog", '"B"', r"$\boxed{B}$"), ("**Yes**", '"yes"', "`Yes`")),
    Form("full width", ("\uff22", "\uff08\uff22\uff09", "\uff22\uff0e"), ("\uff39\uff45\uff53",)),
    Form("a line of its own", ("It barks.\nB",), ("I see one.\nYes.",), r"(?m:^)[^\w\n]*?"),
    Form(
        "the answer is",
        ("The answer is B.", "It barks, so the correct answer is (B)", "Answer: B", "The answer is option b"),
        ("The answer is yes.", "Answer: yes", "My answer is: **Yes**"),
        rf"\b{_NOUN}(?:\s+(?:to|for)\s+(?:this|the)\s+\w+)?\s*(?:\bis\b|\b(?:should|must|would)\s+be\b|:)\W*"
        rf"(?:(?:the\s+)?{_NOUN}\b\W*)?",
    ),
    Form(
        "I choose, it is, so",
        ("I would choose B.", "I think it is B", "It barks. So B."),
        ("I would say yes.", "I see one, so yes."),
        r"(?:\bI(?:'d|'ll|\s+would|\s+will)?\s+(?:choose|select|pick|say|think|believe)|\bit\s+is|\bit's"
        r"|\b(?:so|thus|therefore|hence))\b\W*(?:(?:option|choice)\s*)?",
    ),
    Form(
        "the Chinese cues",
        ("答案是B。", "正确答案是B。因为A不对", "答案:B", "答案应为B", "应该选B", "选择B", "因此B。"),
        ("答案是:是的。", "所以,是的。"),
        rf"(?:答案|正确选项)\s*(?:应该|应当|应)?\s*(?:是|为|:)\W*(?:选项?)?\s*|{_NOT_DENIED}选(?:择|项)?(?:的?是|为)?\W*"
        r"|(?:因此|所以|故)\W*",
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

_LETTER = r"[(\[{【「<]*(?P<word>[A-Ha-h])(?![A-Za-z0-9_'+#])(?!-\w)[)\]}】」>]*"
_NO_LETTER = (
    r"\s*(?:(?:is|was|are|选项|项|是|也|并|都)\s*)*(?:(?:clearly|certainly|an?|the)\s+)?"
    r"(?:not\b|wrong\b|incorrect\b|false\b|isn't|不|错|没)"
)
"""Behind a letter that is mentioned to be denied."""
_CLOSED = (
    r"\s*(?:\Z|\n|[.,:;!、。)\]](?![A-Za-z](?![A-Za-z]))|[-–—](?=\s)|[\u4e00-\u9fff])"
    r"|\s+(?:is|was|because|since|seems)\b"
)
"""Behind a letter that is no article and no part of a word or a name."""
_JOIN = (
    r"(?:\s*(?:,\s*)?(?:\bor\b|\band\b|/|&|\||和|或者?|与|及)\s*(?:(?:maybe|perhaps|possibly|even)\s+)?"
    r"(?:选项|option\s+)?)"
)
_ENDED = r"(?=\s*(?:\Z|\n|[.,;:/&!、。]|\bor\b|\band\b|和|或))"
_ALSO = re.compile(rf"(?:{_JOIN}{_LETTER}|\s*[,、]\s*{_LETTER.replace('?P<word>', '?P<listed>')}{_ENDED})")
_RIGHT = r"\s*(?:(?:is|was|选项|项|是)\s*)*(?:the\s+)?(?:most\s+)?(?:correct|right|best|正确|对)"
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|could|may|not sure|unsure|either|neither|both|cannot|can't|"
    r"don't know)\b|可能|也许|或许|不确定|不知道",
    re.IGNORECASE,
)
_YES, _NO = r"(?:yes|yeah|yep|是的?|对的?|有的?)", r"(?:no|nope|否|不是的?|不|没有)"
_IDIOM = r"\s+(?:idea|clue|doubt|way\s+to|answer|comment|opinion|information)\b"
_WORD = rf"[(\[{{【]*(?:(?P<yes>{_YES})|(?P<no>{_NO}))(?![\w'?-]|\s*[)\]]?\?)(?!{_IDIOM})[)\]}}】]*"
_UNDECIDED = re.compile(
    rf"\b(?:{_YES}|{_NO})\s*(?:,\s*)?(?:\band\b|\bor\b|/|&|\||或)\s*(?:{_YES}|{_NO})\b"
    rf"|\A\W*(?:{_YES}|{_NO})\W+(?:{_YES}|{_NO})\W*\Z",
    re.IGNORECASE,
)
_LEADS = tuple(form.lead for form in FORMS if form.lead)
_LETTERS = tuple(re.compile(f"(?:{lead}){_LETTER}", re.IGNORECASE) for lead in _LEADS)
_RIGHT_LETTER = re.compile(rf"(?<![A-Za-z]){_LETTER}{_RIGHT}", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[【]([A-H])[)\]】]")
_FIRST, *_STATED = (re.compile(f"(?:{lead}){_WORD}", re.IGNORECASE) for lead in _LEADS)
_INITIAL = re.compile(r"\A\W*(?:(?P<yes>y)|(?P<no>n))\W*\Z", re.IGNORECASE)
_BEHIND_STATED = re.compile(r"\s*(?:\Z|[.,;:!。]|\n|because\b|since\b)", re.IGNORECASE)


def plain(text: str) -> str:
    """Return a text without its looks: full width as ASCII, no bold, no quotes, no boxes; the letters' case stays."""
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans("“”‘’", "\"\"''"))
    text = re.sub(r"\\[a-z]+\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"</?\w+>|[*`$\"#~_]", "", text)
    return re.sub(r"(?<!\w)'|'(?!\w)", "", text).strip()


def letter(answer: str, options: Mapping[str, str | None]) -> str | None:
    """Return the option that an answer names by its letter, or else by its text; None if it names none or several.

    Args:
        answer: of the model.
        options: the texts of the question's options by their capital letters, None where they are not known.
    """
    text = plain(answer)
    texts = {name: plain(option) for name, option in options.items() if option is not None and plain(option)}
    named = set(_letters_named(text, texts))
    bracketed = set(_BRACKETED.findall(text))
    if not named and bracketed:
        named = {name for name in bracketed if not re.search(rf"[(\[【]{name}[)\]】]{_NO_LETTER}", text)}
        named = bracketed if len(bracketed) > 1 else named
    if named:
        only = named.pop() if len(named) == 1 else None
        return only if only in options else None
    return _named_by_text(text, texts)


def _letters_named(text: str, texts: Mapping[str, str]) -> Iterator[str]:
    """Yield the letters that an answer names."""
    words = set(re.findall(r"\w+", text))
    if len(words) > 1 and all(re.fullmatch("[A-Ha-h]", word) for word in words):
        yield from (word.upper() for word in words)
    for pattern in _LETTERS:
        for found in pattern.finditer(text):
            yield from _letters_at(text, found, texts)
    for found in _RIGHT_LETTER.finditer(text):
        yield found["word"].upper()


def _letters_at(text: str, found: re.Match[str], texts: Mapping[str, str]) -> Iterator[str]:
    """Yield a letter and those that are joined to it, unless it is an article, a part of a name, or denied."""
    name, behind = found["word"].upper(), text[found.end() :]
    also = _ALSO.match(behind)
    if also:
        yield from (name, (also["word"] or also["listed"]).upper())
    elif re.match(_NO_LETTER, behind, re.IGNORECASE):
        return
    elif (
        found[0][-1] in ")]}】」"
        or re.match(_CLOSED, behind, re.IGNORECASE)
        or _has_own_text(found["word"], behind, texts)
    ):
        yield name


def _has_own_text(word: str, behind: str, texts: Mapping[str, str]) -> bool:
    """Return True if a capital is followed by the text of its own option, and of no other."""
    own = texts.get(word)
    if own is None or not behind.lstrip().casefold().startswith(own.casefold()):
        return False
    rest = behind.lstrip()[len(own) :]
    return not any(_has(rest, option) for name, option in texts.items() if name != word)


def _named_by_text(text: str, texts: Mapping[str, str]) -> str | None:
    """Return the only option whose text an answer has or is; of one text inside another the longer counts."""
    said = text.casefold().strip(" .!。")
    equal = [name for name, option in texts.items() if option.casefold().strip(" .!。") == said]
    if equal:
        return equal[0] if len(equal) == 1 else None
    if _HEDGE.search(text) or re.match(r"\W*A\s", text):  # the letter or the article
        return None
    found = {name: option for name, option in texts.items() if _has(text, option)}
    longest = [n for n, o in found.items() if all(other.casefold() in o.casefold() for other in found.values())]
    return longest[0] if len(longest) == 1 else None


def _has(text: str, option: str) -> bool:
    """Return True if a text has an option as whole words, and does not deny it."""
    before = r"(?<![A-Za-z0-9])" if re.match(r"[A-Za-z0-9]", option) else ""
    after = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]\Z", option) else ""
    denied = r"(?:\b(?:not|no|nor|n't)\s+(?:an?\s+|the\s+)?|不是|没有|不)"
    whole = rf"{before}{re.escape(option)}{after}"
    return bool(re.search(whole, text, re.IGNORECASE)) and not re.search(f"{denied}{whole}", text, re.IGNORECASE)


def yes_or_no(answer: str) -> str | None:
    """Return the "yes" or "no" that an answer says, or None if it says neither or both."""
    text = plain(answer)
    if _UNDECIDED.search(text):
        return None
    found = [match for match in (_FIRST.match(text), _INITIAL.match(text)) if match]
    found += [
        match for pattern in _STATED for match in pattern.finditer(text) if _BEHIND_STATED.match(text, match.end())
    ]
    said = {"yes" if match["yes"] else "no" for match in found}
    return said.pop() if len(said) == 1 else None
