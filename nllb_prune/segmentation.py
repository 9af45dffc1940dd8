"""A text as the pieces that are translated each on its own, and the white space that keeps its form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import regex  # type: ignore[import-untyped]

from nllb_prune.languages import Language, language
from nllb_prune.sentence_ends import sentence_ends

_WORDS = regex.compile(r"[\p{L}\p{N}]")
_NO_SPACE_BETWEEN_SENTENCES = frozenset({"Hans", "Hant", "Jpan"})
"""Thai, Lao, Khmer and Burmese have none between words, but between phrases (Unicode 16.0, chapter 16); so Tibetan."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A sentence, or a part of one."""

    text: str
    """What is translated; never empty, and without white space at its ends."""
    before: str
    """The white space between the piece before, or the start of the text, and this one."""


@dataclass(frozen=True, slots=True)
class Segmented:
    """A text in pieces: all that is before and in them, in order, and `after` are the text again."""

    pieces: tuple[Piece, ...]
    """None if the text is nothing but white space."""
    after: str
    """White space at the end of the text."""

    def joined(self, translations: Sequence[str], *, target: str) -> str:
        """Put the translations of all pieces where the pieces were.

        Between two sentences a single space goes, or one comes, as the script of the target has it; line breaks and
        all other white space stay.

        Args:
            translations: One for each piece, in order.
            target: Language of the translations.
        """
        return "".join(self.parts(translations, target=target))

    def parts(self, translations: Iterable[str], *, target: str) -> Iterator[str]:
        """Yield each translation, as soon as it is there, with the white space before it; arguments as of `joined`."""
        spaced, left = language(target).script not in _NO_SPACE_BETWEEN_SENTENCES, None
        for piece, right in zip(self.pieces, translations, strict=True):
            yield (piece.before if left is None else _gap(left, piece.before, right, spaced=spaced)) + right
            left = right
        if self.after:
            yield self.after


def segment(text: str, code: str) -> Segmented:
    """Cut a text into its sentences; a line break ends one always.

    Args:
        text: Any text; lone surrogates are kept like all else.
        code: Its language, under any of its names.

    Raises:
        UsageError: if there is no such language.
    """
    return divided(text, _ends(text, language(code)))


def divided(text: str, cuts: Iterable[int]) -> Segmented:
    """Return what is between the cuts, which are offsets in order, the last one the end of the text."""
    pieces: list[Piece] = []
    start = end = 0
    for cut in cuts:
        words = text[start:cut].strip()
        if words:
            first = cut - len(text[start:cut].lstrip())
            pieces.append(Piece(words, text[end:first]))
            end = first + len(words)
        start = cut
    return Segmented(tuple(pieces), text[end:])


def has_words(text: str) -> bool:
    """Return whether there is anything to translate: a letter or a number.

    Marks alone are none, as they change a letter and mean nothing without; signs and emoji need no translation.
    """
    return bool(_WORDS.search(text))


def _ends(text: str, spoken: Language) -> Iterator[int]:
    start = 0
    for line in text.splitlines(keepends=True):
        yield from (start + end for end in sentence_ends(line, spoken))
        start += len(line)
        yield start


def _gap(left: str, space: str, right: str, *, spaced: bool) -> str:
    """Return what is between two translations for what was between their pieces."""
    if space == "" and spaced:
        return " "
    if space == " " and not spaced and not (left + right).isascii():
        return ""
    return space
