"""Which elements of HTML a place is in, as far as it matters for whether its text is translated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

# fmt: off
_VOID = frozenset((
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
))
_UNREAD = frozenset(("iframe", "noembed", "noframes", "plaintext", "script", "style", "textarea", "xmp"))
"""Nobody reads their content as a text."""
_RAW = _UNREAD | {"title"}
"""In these there are no tags but the one that ends them."""
_CODE = frozenset(("code", "kbd", "math", "samp", "var"))
_HOLDERS = frozenset(("dl", "menu", "ol", "select", "table", "ul"))
"""In these, elements may stand that would end one outside."""
_BLOCKS = _HOLDERS - {"select"} | frozenset((
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dialog", "div",
    "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header",
    "hgroup", "hr", "html", "li", "main", "nav", "p", "pre", "search", "section", "summary", "tbody", "td", "tfoot",
    "th", "thead", "tr",
))
# fmt: on
_ROWS = frozenset(("tbody", "tfoot", "thead", "tr"))
_CELLS = _ROWS | {"td", "th"}
_ENDED_BY: Mapping[str, frozenset[str]] = {
    "p": _BLOCKS,
    "li": frozenset({"li"}),
    "dd": frozenset({"dd", "dt"}),
    "dt": frozenset({"dd", "dt"}),
    "td": _CELLS,
    "th": _CELLS,
    "tr": _ROWS,
    **{group: _ROWS - {"tr"} for group in ("tbody", "tfoot", "thead")},
    "option": frozenset({"option", "optgroup"}),
    "optgroup": frozenset({"optgroup"}),
}
"""What begins ends an element that has no end tag (HTML standard, 13.1.2.4)."""


class Nesting:
    """The elements that are open, told of each tag in turn; each is worked on once, however deep they are."""

    def __init__(self) -> None:
        self._parts = [_Part("", True)]
        self._open: Counter[str] = Counter()
        self.raw: str | None = None
        """The element that has just begun, if there are no tags in it."""

    @property
    def translated(self) -> bool:
        """Whether text here is translated."""
        return self._parts[-1].translated

    @property
    def formatted(self) -> bool:
        """Whether white space here is as a reader sees it."""
        return self._open["pre"] > 0

    def begin(self, name: str, attributes: Mapping[str, str]) -> None:
        """Enter an element; one that has no content is left at once."""
        while self._parts[-1].ended_by(name):
            self._leave()
        if name in _VOID:
            return
        self.raw = name if name in _RAW else None
        translated = _translated(name, attributes)
        if translated is not None:
            self._parts.append(_Part(name, translated))
        self._count(name, 1)

    def end(self, name: str) -> None:
        """Leave an element, and all in it that has not ended; an end tag of none that is open means nothing."""
        self.raw = None
        if not self._open[name]:
            return
        while not self._parts[-1].open[name]:
            if self._parts[-1].outlasts(name):
                return
            self._leave()
        self._count(name, -1)
        if self._parts[-1].name == name and not self._parts[-1].open[name]:
            self._leave()

    def _count(self, name: str, change: int) -> None:
        self._open[name] += change
        self._parts[-1].open[name] += change

    def _leave(self) -> None:
        self._open.subtract(self._parts.pop().open)


@dataclass(slots=True)
class _Part:
    """An element that says of itself whether it is translated."""

    name: str
    translated: bool
    open: Counter[str] = field(default_factory=Counter)
    """Elements that began in it and have not ended, and itself."""

    def ended_by(self, name: str) -> bool:
        """Return whether another element ends this one where it begins."""
        return name in _ENDED_BY.get(self.name, ()) and not any(self.open[holder] for holder in _HOLDERS)

    def outlasts(self, name: str) -> bool:
        """Return whether this goes on where an element around it ends, as a block in a `<b>` does."""
        return self.name in _BLOCKS and (name == "p" or name not in _BLOCKS)


def _translated(name: str, attributes: Mapping[str, str]) -> bool | None:
    """Return whether an element is translated; nothing if it is as what is around it."""
    if name in _UNREAD or "notranslate" in attributes.get("class", "").split():
        return False
    said = {"no": False, "yes": True, "": True}.get(attributes.get("translate", "inherit").lower())
    return False if said is None and name in _CODE else said
