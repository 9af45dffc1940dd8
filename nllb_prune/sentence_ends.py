"""Where sentences end in a line.

Unicode's sentence boundaries (UAX #29) know the marks of all scripts. Added is what they leave to a language, and a
bias: where in doubt there is no cut, as half a sentence is translated worse than two at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import regex  # type: ignore[import-untyped]

from nllb_prune.abbreviations import BEFORE_NUMBERS, FIRST_WORDS, ORDINAL_LANGUAGES, before_names
from nllb_prune.languages import Language

_UNSEEN = r"[\p{SB=Extend}\p{SB=Format}]*+"
CLOSERS = (
    rf"""(?:(?:[\p{{Pe}}\p{{Pf}}"']|\p{{Pi}}(?=[\s\p{{P}}]|\Z)|[ \xA0\u202F]»(?=[\s\p{{P}}]|\Z)"""
    rf"""|\[\p{{Nd}}{{1,3}}\]){_UNSEEN})*+"""
)
"""What may stand between the mark of a sentence and its end: brackets, quotation marks, numbers of notes as in [2]."""

_WITHIN = r"．\p{N}|។ល។|۔\p{L}{1,3}۔|(?<=۔\p{L}{1,3})۔\p{L}"  # a decimal point, the Khmer etc., Urdu initials
_MARK = rf"(?!{_WITHIN})[\p{{Sentence_Terminal}}…--\u104A]"  # U+104A is the comma of Burmese
_MARKS_OF_SCRIPTS = {
    "Armn": r":(?=\s)",  # often typed for U+0589
    "Ethi": "፡፡|::",  # often typed for U+1362
    "Grek": r"[;\u037E](?=\s)",  # asks
    # A shad ends a phrase (UAX #14), and a sentence if it is double or follows a finite verb or a closing particle.
    "Tibt": r"༎|།\s?།|(?<=[་\s](?:(?:ཡིན|མིན|ཨིན|རེད|འདུག|ཡོད|མེད|སོ|འོ|ཏོ|དོ|ནོ|གོ|ངོ)|(?:སོང|བྱུང)་?))།",
}
_NEEDS_NO_SPACE = regex.compile(r"(?V1)[\p{Sentence_Terminal}--[.!?]]|::|[፡།༎]")
_GOES_ON = regex.compile(r"\s*+[\p{SB=SContinue}\p{Sentence_Terminal}…]")
_SMALL_LETTER = regex.compile(
    r"[^\p{SB=OLetter}\p{SB=Upper}\p{SB=Lower}\p{SB=Numeric}\p{Sentence_Terminal}…]*+\p{SB=Lower}"
)
_BETWEEN_CASELESS = regex.compile(r"(?<=\p{SB=OLetter}\p{M}*)[!?]++(?=\p{SB=OLetter})")
_OPENS = regex.compile(r"[\p{Ps}\p{Pi}]")
_WORD = regex.compile(r"\p{L}\p{M}*\p{L}|\p{SB=OLetter}")

_LOOKED_AT = 24  # characters before a full stop
_LAST_WORD = regex.compile(r"(?r)[\p{L}\p{M}\p{N}\p{Cf}№°'’ʼ·-]*")
_LAST_PART = regex.compile(r"(?r)[^'’ʼ-]*")
_LETTER_ALONE = regex.compile(r"(?V1)[\p{L}--[\p{Han}\p{Hangul}\p{Hiragana}\p{Katakana}]]\p{Inherited}*")
_SMALL_BEFORE = regex.compile(r"(?r)\p{SB=Lower}\p{M}*\Z")
_DOTTED = regex.compile(r"(?:[^\p{L}\p{M}]|\A)(?:\p{L}\p{M}*\.\s?\p{L}\p{M}*|\p{L}{1,2}\.\p{L}{1,3})\Z")
_DOTTED_NEXT = regex.compile(r"\s*+(?:\p{N}|\p{L}\p{M}*\.)")
_NUMBER_NEXT = regex.compile(r"\s*+\(?\p{N}")
_ORDINAL = regex.compile(r"(?:[^\p{L}\p{N}.,:]|\A)(?:\p{Nd}{1,2}|[IVX]{1,5})\Z")
_NEXT_WORD = regex.compile(r"\s*+([\p{L}'’]{1,12}+)")


def sentence_ends(line: str, spoken: Language) -> Iterator[int]:
    """Yield the offsets in a line after which a sentence begins, each with a word between it and the one before."""
    marks = _marks(spoken.script).finditer(line)
    return _with_words(line, (mark.end() for mark in marks if _is_end(mark, spoken.code)))


@cache
def _marks(script: str) -> Any:
    own = f"{_MARKS_OF_SCRIPTS[script]}|" if script in _MARKS_OF_SCRIPTS else ""
    return regex.compile(rf"(?V1)(?P<marks>(?:(?:{own}{_MARK}){_UNSEEN})++)(?P<closers>{CLOSERS})")


def _with_words(line: str, ends: Iterable[int]) -> Iterator[int]:
    """Leave out ends that would cut off a sign, a number or a letter alone, such as those of a list."""
    word = _WORD.search(line)
    for end in ends:
        if word and word.start() < end:
            yield end
            word = _WORD.search(line, end)


def _is_end(mark: Any, code: str) -> bool:
    line, end = mark.string, mark.end()
    if end == len(line) or _GOES_ON.match(line, end):
        return False
    needs_no_space = bool(_NEEDS_NO_SPACE.search(mark["marks"]))
    if not line[end].isspace():
        if mark["closers"]:
            return needs_no_space and bool(_OPENS.match(line, end))
        return needs_no_space or bool(_BETWEEN_CASELESS.match(line, mark.start()))
    if needs_no_space:
        return True
    abbreviates = mark[0] == "." and _is_abbreviated(line, mark.start(), code)
    return not abbreviates and not _SMALL_LETTER.match(line, end)


def _is_abbreviated(line: str, stop: int, code: str) -> bool:
    """Return whether the word before a full stop is an abbreviation, an initial, or the number of an ordinal."""
    before = line[max(0, stop - _LOOKED_AT) : stop]
    word = _LAST_WORD.search(before)[0].strip("-").casefold()
    forms = {word, _LAST_PART.search(word)[0]}
    if not forms.isdisjoint(before_names(code)):
        return True
    if not forms.isdisjoint(BEFORE_NUMBERS) and _NUMBER_NEXT.match(line, stop + 1):
        return True
    if code in ORDINAL_LANGUAGES and _ORDINAL.search(before):
        return True
    return _is_initial(before, word, line, stop + 1) and not _begins(line, stop + 1, code)


def _is_initial(before: str, word: str, line: str, after: int) -> bool:
    """Return whether a letter alone, or of several with full stops as in e.g., stands before a full stop."""
    alone = bool(_LETTER_ALONE.fullmatch(word))
    if alone and (not _SMALL_BEFORE.search(before) or _DOTTED_NEXT.match(line, after)):
        return True
    return bool(_DOTTED.search(before))


def _begins(line: str, after: int, code: str) -> bool:
    """Return whether a word comes that hardly follows an abbreviation, so that what was before it ended there."""
    found = _NEXT_WORD.match(line, after)
    return bool(found) and found[1].casefold() in FIRST_WORDS.get(code, ())
