"""The one reader of answers that name an option's letter, or say yes or no. No torch, no lmms-eval.

An answer that names two letters, or both yes and no, names none: an unreadable answer is wrong, never a guess.
`dpbench.tasks.answer_forms` is the table of what is read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

from dpbench.tasks.answer_forms import FORMS

_LETTER = r"[(\[{【「『《<]*(?P<word>[A-Ha-h])(?![A-Za-z0-9_'+#])(?!-\w)[)\]}】」』》>]*"
_NO_LETTER = (
    r"\s*(?:[:-]\s*(?=wrong|incorrect|false|错|不对))?(?:(?:is|was|are|选项|项|是|也|并|都)\s*)*"
    r"(?:(?:clearly|certainly|an?|the)\s+)?"
    r"(?:not\b|wrong\b|incorrect\b|false\b|isn't|不(?!选|是?\s*[A-Ha-h])|错|没|吗)"
)
"""Behind a letter that is mentioned to be denied."""
_CLOSED = (
    r"\s*(?:\Z|\n|[.,:;!)\]](?![A-Za-z](?![A-Za-z]))|[、。]|[-–—](?=\s)|[\u4e00-\u9fff])"
    r"|\s+(?:because|since|instead\s+of|rather\s+than|(?:and|but)\s+not)\b|\s+(?:is|was|seems)\s+(?:the|my)\s+\w*\s*(?:answer|option|choice)\b"
)
"""Behind a letter that is no article and no part of a word or a name."""
_JOIN = (
    r"(?:\s*(?:,\s*)?(?:\bor\b|\band\b|/|&|\||和|或者?|还是|与|及|跟)\s*(?:(?:maybe|perhaps|possibly|even)\s+)?"
    r"(?:选项|option\s+)?)"
)
_ENDED = r"(?=\s*(?:\Z|\n|[.,;:/&!、。]|\bor\b|\band\b|和|或))"
_ALSO = re.compile(rf"(?:{_JOIN}{_LETTER}|\s*[,、]\s*{_LETTER.replace('?P<word>', '?P<listed>')}{_ENDED})")
_RIGHT = r"\s*:?\s*(?:(?:is|was|seems|looks|选项|项|是)\s*)*(?:the\s+)?(?:most\s+)?(?:correct|right|best|正确|对)"
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|might|could|may|not sure|unsure|either|neither|both|cannot|can't|"
    r"don't know)\b|可能|也许|或许|不确定|不知道",
    re.IGNORECASE,
)
_YES, _NO = r"(?:yes|yeah|yep|yup|是的?|对的?|有的?)", r"(?:no|nope|nah|否|不是的?|不对|不|没有)"
_IDIOM = r"(?:\s+(?:idea|clue|doubt|way\s+to|answer|comment|opinion|information|problem|one)\b|\.?\s*\d)"
_WORD = rf"[(\[{{【]*(?:(?P<yes>{_YES})|(?P<no>{_NO}))(?![\w'?-]|\s*[)\]]?\?)(?!{_IDIOM})[)\]}}】]*"
_EITHER = r"(?:\s*(?:,\s*)?(?:\band\b|\bor\b|\bbut\b|/|&|\||或)\s*)"
_UNDECIDED = re.compile(
    rf"\b(?:{_YES}{_EITHER}{_NO}|{_NO}{_EITHER}{_YES})\b|\A\W*(?:{_YES}\W+{_NO}|{_NO}\W+{_YES})\W*\Z",
    re.IGNORECASE,
)
_LEADS = tuple(form.lead for form in FORMS if form.lead)
_LETTERS = tuple(re.compile(f"(?:{lead}){_LETTER}", re.IGNORECASE) for lead in _LEADS)
_RIGHT_LETTER = re.compile(rf"(?<![A-Za-z]){_LETTER}{_RIGHT}", re.IGNORECASE)
_MODERN = str.maketrans("選項為對沒確錯應該擇並還與", "选项为对没确错应该择并还与")
_BRACKETED = re.compile(r"[(\[【]([A-H])[)\]】]")
_FIRST, *_STATED = (re.compile(f"(?:{lead}){_WORD}", re.IGNORECASE) for lead in _LEADS)
_INITIAL = re.compile(r"\A\W*(?:(?P<yes>y)|(?P<no>n))\W*\Z", re.IGNORECASE)
_SHORT = re.compile(
    r"\A\W*(?:there|it|he|she|they|this|that)\s+(?:is|are|does|do|was|were)(?P<no>\s+not|n't)?\W*\Z", re.IGNORECASE
)
_LAST = re.compile(rf"[,?:]\s*{_WORD}\W*\Z", re.IGNORECASE)
_BEHIND_STATED = re.compile(r"\s*(?:\Z|[.,;:!。]|\n|because\b|since\b)", re.IGNORECASE)


def plain(text: str) -> str:
    """Return a text without its looks: full width as ASCII, no bold, no quotes, no boxes; the letters' case stays.

    The traditional characters of a cue become simplified ones.
    """
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans("“”‘’", "\"\"''")).translate(_MODERN)
    while (unboxed := re.sub(r"\\[a-z]+\{([^{}]*)\}|<([a-z]+)>([^<]*)</\2>", r"\1\3", text)) != text:
        text = unboxed
    text = re.sub(r"<br ?/?>", "\n", text)
    text = re.sub(r"[*`$\"#~_\\]", "", text)
    return re.sub(r"(?<!\w)'|'(?!\w)", "", text).strip()


def letter(answer: str, options: Mapping[str, str | None]) -> str | None:
    """Return the option that an answer names by its letter, or else by its text; None if it names none or several.

    Args:
        answer: of the model.
        options: the texts of the question's options by their capital letters, None where they are not known.
    """
    texts = {name: plain(option) for name, option in options.items() if option is not None and plain(option)}
    text = _without_repeated_options(plain(answer), texts)
    named = set(_letters_named(text, texts))
    bracketed = set(_BRACKETED.findall(text))
    if not named and bracketed:
        named = {name for name in bracketed if not re.search(rf"[(\[【]{name}[)\]】]{_NO_LETTER}", text)}
        named = bracketed if len(bracketed) > 1 else named
    if named:
        only = named.pop() if len(named) == 1 else None
        return only if only in options else None
    return _named_by_text(text, texts)


def _without_repeated_options(text: str, texts: Mapping[str, str]) -> str:
    """Return an answer without the question's options in their order, if it repeats them all."""
    listed = [rf"[(\[]?{name}[)\].:、]+\s*{re.escape(option)}" for name, option in texts.items()]
    return re.sub(r"\W*".join(listed) + r"(?!\w)\W*", "\n", text, flags=re.IGNORECASE) if len(listed) > 1 else text


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
    for name, option in texts.items():
        own = re.search(rf"(?<!\w)[(\[]?{name}[)\].:]+\s*{re.escape(option)}(?!\w)", text)
        if own and not re.match(_NO_LETTER, text[own.end() :], re.IGNORECASE):
            yield name


def _letters_at(text: str, found: re.Match[str], texts: Mapping[str, str]) -> Iterator[str]:
    """Yield a letter and those that are joined to it, unless it is an article, a part of a name, or denied."""
    name, behind = found["word"].upper(), text[found.end() :]
    also = _ALSO.match(behind)
    if also:
        yield from (name, (also["word"] or also["listed"]).upper())
    elif re.match(_NO_LETTER, behind, re.IGNORECASE):
        return
    elif (
        found[0][-1] in ")]}】」』》>"
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
    if not found and not _HEDGE.search(text) and (last := _LAST.search(text)):
        said = {"yes" if last["yes"] else "no"}
    if short := _SHORT.match(text):
        said = {"no" if short["no"] else "yes"}
    return said.pop() if len(said) == 1 else None
