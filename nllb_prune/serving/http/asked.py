"""What a client asks for, checked in the order that clients know: presence, type, number, size, language."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

from nllb_prune.generation.search import SearchSettings
from nllb_prune.serving.http.codes import AUTO, ServedLanguages, code_of, title
from nllb_prune.serving.http.fields import Fields
from nllb_prune.serving.http.problems import Problem, exceeds, missing, unsupported, wrong_type
from nllb_prune.serving.http.settings import ServerSettings

_FORMATS = ("text", "html")
_EXPERTS = ("kept", "all")
_SENTENCE = 16  # characters, which a sentence costs beside its own
_NAME_SHOWN = 64  # characters of a wrong name that an answer repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Texts to translate."""

    texts: tuple[str, ...]
    listed: bool
    """Whether they came as a list, and go back as one."""
    source: str | None
    """FLORES-200 code; `None` to find out."""
    target: str
    html: bool
    search: SearchSettings
    full: bool = False
    """Whether to use all experts."""

    @property
    def alternatives(self) -> int:
        """Further translations wanted."""
        return self.search.alternatives - 1

    @property
    def size(self) -> int:
        """Characters of all texts."""
        return sum(map(len, self.texts))

    @property
    def cost(self) -> int:
        """What all texts cost together."""
        return sum(map(cost_of, self.texts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What may be asked for."""

    settings: ServerSettings
    languages: ServedLanguages
    beams: int
    """At most."""
    full: bool

    def asked(self, fields: Fields) -> Asked:
        """Return what the parameters of `/translate` ask for.

        Raises:
            Problem: with the text that says why not.
        """
        q, source, target = (_present(fields, name) for name in ("q", "source", "target"))
        texts = texts_of(q)
        for name, value in (("source", source), ("target", target)):
            _check_text(name, value)
        alternatives = max(0, _count(fields, "alternatives", most=self.beams - 1, usual=0))
        self.check_sizes(texts, listed=isinstance(q, list))
        html = _choice(fields, "format", _FORMATS, "{} format is not supported") == "html"
        return Asked(
            texts=texts,
            listed=isinstance(q, list),
            source=None if source == AUTO else _code(source, self.languages.targets),
            target=_code(target, self.languages.into),
            html=html,
            search=_search(max(self.settings.beams, alternatives + 1), alternatives),
        )

    def asked_in_full(self, fields: Fields) -> Asked:
        """Return what the parameters of `/v1/translate` ask for: those of `/translate`, one text, and some more.

        Raises:
            Problem: with the text that says why not.
        """
        asked = self.asked(fields)
        if asked.listed:
            raise wrong_type("q", "a text")
        usual = asked.search.beams
        beams = _count(fields, "beams", most=self.beams, usual=usual)
        if beams < 1:
            raise Problem(400, "Invalid request: beams parameter must be >= 1")
        full = _choice(fields, "experts", _EXPERTS, "experts must be kept or all, not {}") == "all"
        if full and not self.full:
            raise Problem(400, "The full model is not served here; experts must be kept")
        return replace(asked, search=_search(max(beams, asked.search.alternatives), asked.alternatives), full=full)

    def check_sizes(self, texts: tuple[str, ...], *, listed: bool) -> None:
        """Refuse too many texts, and too long ones."""
        if listed and self.settings.texts is not None and len(texts) > self.settings.texts:
            raise exceeds(len(texts), self.settings.texts)
        longest = max(map(len, texts))
        if self.settings.characters is not None and longest > self.settings.characters:
            raise exceeds(longest, self.settings.characters)

    def check_direction(self, source: str, target: str) -> None:
        """Refuse a direction that is not served."""
        if not self.languages.serves(source, target):
            raise Problem(400, f"{title(target)} is not available as a target language from {title(source)}")


def cost_of(text: str) -> int:
    """Return what a text costs, in characters: a line is a sentence at least, which takes some time however short."""
    return len(text) + _SENTENCE * (1 + text.count("\n"))


def texts_of(q: Any) -> tuple[str, ...]:
    """Return the texts of a parameter that is a text or a list of texts."""
    texts = q if isinstance(q, list) else [q]
    if not all(isinstance(text, str) for text in texts):
        raise wrong_type("q", "a text or a list of texts")
    return tuple(texts)


def _present(fields: Fields, name: str) -> Any:
    value = fields.get(name)
    if value is None or value == "" or value == []:
        raise missing(name)
    return value


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise wrong_type(name, "a text")


def _count(fields: Fields, name: str, *, most: int, usual: int) -> int:
    """Return a whole number, which forms give as text."""
    value = fields.get(name)
    if value is None or value == "":
        return usual
    try:
        count = int(value) if isinstance(value, str) and len(value) < 10 else value
    except ValueError:
        count = None
    if type(count) is float and count.is_integer():
        count = int(count)
    if type(count) is not int:
        raise wrong_type(name, "a number")
    if count > most:
        raise Problem(400, f"Invalid request: {name} parameter must be <= {most}")
    return count


def _choice(fields: Fields, name: str, choices: tuple[str, ...], refusal: str) -> str:
    """Return one of some words, the first if there is none."""
    value = fields.get(name)
    if value is None or value == "":
        return choices[0]
    if value not in choices:
        raise Problem(400, refusal.format(str(value)[:_NAME_SHOWN]))
    return str(value)


def _code(name: str, served: Container[str]) -> str:
    code = code_of(name, served)
    if code is None:
        raise unsupported(name[:_NAME_SHOWN])
    return code


def _search(beams: int, alternatives: int) -> SearchSettings:
    return SearchSettings(beams=beams, alternatives=alternatives + 1)
