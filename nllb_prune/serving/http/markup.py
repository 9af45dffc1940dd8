"""HTML whose text is translated and whose tags stay as they are.

Tags are found as the HTML standard says (13.2.5), in time linear in the text; the standard library's parser takes a
minute for 80 KB of `<a <a`, and raises on `<![`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape, unescape

from nllb_prune.segmentation import has_words
from nllb_prune.serving.http.nesting import Nesting

_OPENING = re.compile(r"<(?:[a-zA-Z!?]|/.)", re.DOTALL)
_COMMENT = re.compile(r"<!--(?:-?>|.*?(?:--!?>|\Z))", re.DOTALL)
_NAME = re.compile(r"<(/?)([a-zA-Z][^\t\n\f\r />]*)")
_ATTRIBUTE = re.compile(
    r"""[\t\n\f\r\ /]*(=?[^\t\n\f\r />=]+|=)
    (?:[\t\n\f\r\ ]*=[\t\n\f\r\ ]*("[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|[^\t\n\f\r >"'][^\t\n\f\r >]*|(?=>)))?""",
    re.VERBOSE,
)
"""A name and perhaps a value, in its quotes; it matches until the `>` that ends a tag, or the end of all."""
_SPACES = re.compile(r"[\t\n\f\r ]+")
_GAP = re.compile(r"(?:\s|&(?:nbsp|ensp|emsp|thinsp|#160|#[xX][aA]0);)+")


@dataclass(frozen=True, slots=True)
class Markup:
    """HTML, and the texts in it that are translated.

    Each run of text between two tags is a text of its own, within a sentence too: so `<b>` stays about what it was
    about, at the price that a sentence with tags in it is translated in parts. What has no words stays as it is; so do
    attributes, comments, scripts, code, what is in a `<textarea>`, and what `translate="no"` or the class `notranslate`
    marks, but for what `translate="yes"` marks within.
    """

    texts: tuple[str, ...]
    """As a reader sees them: without entities, and with single spaces unless in a `<pre>`."""
    _slices: tuple[str, ...]
    """The whole: what stays, a text, what stays, a text, ..., what stays."""

    @classmethod
    def of(cls, html: str) -> Markup:
        """Find the texts of any HTML, however malformed."""
        texts: list[str] = []
        slices: list[str] = []
        last = 0
        for start, end, formatted in _runs(html):
            run = html[start:end]
            text = unescape(run if formatted else _SPACES.sub(" ", run))
            if has_words(text):
                texts.append(text)
                slices += (html[last:start], run)
                last = end
        return cls(tuple(texts), (*slices, html[last:]))

    def filled(self, translations: Sequence[str]) -> str:
        """Put the translations of all texts where the texts were.

        What is around them, white space too, comes back byte for byte, and so does a text that is its own translation.

        Args:
            translations: One for each text, in order; of plain text, as the texts are.
        """
        slices = list(self._slices)
        for number, (text, translation) in enumerate(zip(self.texts, translations, strict=True)):
            if translation != text:
                slices[2 * number + 1] = escape(translation, quote=False)
        return "".join(slices)


def _runs(html: str) -> Iterator[tuple[int, int, bool]]:
    """Yield start and end of each run to translate, without white space around it, and whether that in it counts."""
    nesting, place = Nesting(), 0
    while place < len(html):
        end = _end_of_text(html, place, nesting.raw)
        if nesting.translated:
            yield *_trimmed(html, place, end), nesting.formatted
        place = _after_markup(html, end, nesting)


def _trimmed(html: str, start: int, end: int) -> tuple[int, int]:
    if before := _GAP.match(html, start, end):
        start = before.end()
    gaps = deque(_GAP.finditer(html, start, end), maxlen=1)
    return start, gaps[0].start() if gaps and gaps[0].end() == end else end


def _end_of_text(html: str, place: int, raw: str | None) -> int:
    if raw == "plaintext":
        return len(html)
    opening = _OPENING if raw is None else re.compile(rf"</{raw}(?=[\t\n\f\r />])", re.ASCII | re.IGNORECASE)
    found = opening.search(html, place)
    return found.start() if found else len(html)


def _after_markup(html: str, place: int, nesting: Nesting) -> int:
    """Return where a tag or comment ends; without an end it is all of the rest, as in a browser."""
    if comment := _COMMENT.match(html, place):
        return comment.end()
    name = _NAME.match(html, place)
    if name is None:
        return _after_tag(html, place)
    attributes: dict[str, str] = {}
    place = name.end()
    while attribute := _ATTRIBUTE.match(html, place):
        attributes.setdefault(attribute[1].lower(), _value(attribute[2] or ""))
        place = attribute.end()
    if name[1]:
        nesting.end(name[2].lower())
    else:
        nesting.begin(name[2].lower(), attributes)
    return _after_tag(html, place)


def _value(written: str) -> str:
    return unescape(written[1:-1] if written.startswith(('"', "'")) else written)


def _after_tag(html: str, place: int) -> int:
    return html.find(">", place) + 1 or len(html)
