"""Which parts of the texts of a request are translated, and what is made of their translations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from nllb_prune.segmentation import has_words
from nllb_prune.serving.http.asked import Asked, cost_of
from nllb_prune.serving.http.backend import Ask
from nllb_prune.serving.http.detection import Detected
from nllb_prune.serving.http.markup import Markup
from nllb_prune.serving.texts import TranslatedText, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A text that is translated."""

    source: str
    """FLORES-200 code."""
    target: str
    text: str
    alternatives: tuple[str, ...]
    detected: Detected | None
    """If it was to be found out."""
    work: Work
    seconds: float
    """From the request on."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A text of a request: which of the backend's texts are its own."""

    text: str
    source: str
    detected: Detected | None
    markup: Markup | None
    first: int
    count: int

    def filled(self, translations: Sequence[str]) -> str:
        """Return the text with translations in the place of what is its own."""
        if self.markup is not None:
            return self.markup.filled(translations)
        return translations[0] if translations else self.text


def _own_texts(text: str, markup: Markup | None) -> list[str]:
    """Return what of a text there is to translate: what stands between tags; nothing, if it has no words."""
    if markup is not None:
        return list(markup.texts)
    return [text] if has_words(text) else []


class Pieces:
    """What of a request goes to the backend: texts, or in HTML what stands between tags.

    A text that is in the target language already, or has no words, stays as it is.

    Args:
        asked: The request.
        sources: Language of each text.
        detected: The same where it was to be found out, else nothing.
        markups: Tags of each text, `None` for one without.
    """

    def __init__(
        self, asked: Asked, sources: Sequence[str], detected: Sequence[Detected], markups: Sequence[Markup | None]
    ) -> None:
        self._asked = asked
        self._texts: list[_Text] = []
        pieces: list[tuple[str, str]] = []
        for number, (text, source, markup) in enumerate(zip(asked.texts, sources, markups, strict=True)):
            own = [] if source == asked.target else _own_texts(text, markup)
            known = detected[number] if detected else None
            self._texts.append(_Text(text, source, known, markup if own else None, len(pieces), len(own)))
            pieces += [(piece, source) for piece in own]
        self.ask = Ask(
            texts=tuple(piece for piece, _ in pieces),
            sources=tuple(source for _, source in pieces),
            target=asked.target,
            search=asked.search,
            full=asked.full,
        )
        """For the backend; without texts there is nothing to translate."""

    def portions(self, most: int) -> Iterator[tuple[Ask, int]]:
        """Yield what goes to the backend in parts that cost `most` at most, or are one text, with what each costs."""
        first, cost = 0, 0
        for number, text in enumerate(self.ask.texts):
            more = cost_of(text)
            if number > first and cost + more > most:
                yield self._part(first, number), cost
                first, cost = number, 0
            cost += more
        if cost:
            yield self._part(first, len(self.ask.texts)), cost

    def _part(self, first: int, end: int) -> Ask:
        return replace(self.ask, texts=self.ask.texts[first:end], sources=self.ask.sources[first:end])

    @property
    def plain(self) -> bool:
        """Whether it is one text that goes to the backend as it is."""
        return len(self._texts) == len(self.ask.texts) == 1 and self._texts[0].markup is None

    def answers(self, found: Sequence[TranslatedText], *, seconds: float) -> list[Answered]:
        """Return the translation of each text of the request, given those of the pieces."""
        return [self._answer(each, found[each.first : each.first + each.count], seconds) for each in self._texts]

    def _answer(self, text: _Text, found: Sequence[TranslatedText], seconds: float) -> Answered:
        ranked = [text.filled([_ranked(each, rank) for each in found]) for rank in range(self._asked.alternatives + 1)]
        return Answered(
            source=text.source,
            target=self._asked.target,
            text=ranked[0],
            alternatives=tuple(each for each in dict.fromkeys(ranked) if each != ranked[0]),
            detected=text.detected,
            work=_together([each.work for each in found]),
            seconds=seconds,
        )


def _ranked(found: TranslatedText, rank: int) -> str:
    """Return the translation of a rank, or the last there is."""
    every = (found.text, *found.alternatives)
    return every[min(rank, len(every) - 1)]


def _together(works: Sequence[Work]) -> Work:
    """Return the work of pieces that were translated side by side."""
    return Work(
        source_tokens=sum(work.source_tokens for work in works),
        target_tokens=sum(work.target_tokens for work in works),
        waited=max((work.waited for work in works), default=0.0),
        translating=max((work.translating for work in works), default=0.0),
    )
