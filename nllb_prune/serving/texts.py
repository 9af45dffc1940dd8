"""Texts to sentences of tokens, and translations of sentences to translations of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nllb_prune.generation.search import Hypothesis
from nllb_prune.generation.translate import Translation
from nllb_prune.long_sentences import shortened
from nllb_prune.segmentation import Segmented, divided, has_words, segment
from nllb_prune.tokenization import encode

_SPECIAL = 2
"""Language token and `</s>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the translation of a text took."""

    source_tokens: int = 0
    """Of all sentences, with the language token and `</s>` of each."""
    target_tokens: int = 0
    """Of the best translations of all sentences, with the `</s>` of each."""
    waited: float = 0.0
    """Seconds until its sentences joined others in flight; the longest."""
    translating: float = 0.0
    """Seconds from then until they were finished; the longest."""


@dataclass(frozen=True, slots=True)
class TranslatedText:
    """The translation of a text."""

    text: str
    alternatives: tuple[str, ...]
    """Further translations of the whole text, the next best of every sentence put together."""
    sentences: tuple[tuple[Translation, ...], ...]
    """Translations of each sentence, best first."""
    work: Work = field(default=Work(), compare=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text in sentences, and the tokens of those that there is something to translate in."""

    source: str
    target: str
    segmented: Segmented
    tokens: tuple[tuple[int, ...] | None, ...]
    """Of each piece; `None` for one that stays as it is."""

    def assembled(
        self, sentences: Sequence[tuple[Translation, ...]], *, alternatives: int, work: Work
    ) -> TranslatedText:
        """Put the translations of all pieces together, so many of the whole."""
        wholes = [
            self.segmented.joined([each[min(rank, len(each) - 1)].text for each in sentences], target=self.target)
            for rank in range(alternatives)
        ]
        return TranslatedText(wholes[0], tuple(dict.fromkeys(wholes[1:])), tuple(sentences), work)

    def parts(self, sentences: Iterable[tuple[Translation, ...]]) -> Iterator[str]:
        """Yield the best translation piece by piece; all that is yielded is the translation of the text."""
        return self.segmented.parts((each[0].text for each in sentences), target=self.target)


class Texts:
    """Cuts, encodes and decodes texts, for any thread.

    The tokenizer is called in one thread alone: it is not safe to be used by several, and fills a cache in each (2 KB
    a sentence with 64 threads; with one .5, until it is full at 3 MB).

    Args:
        tokenizer: Of the model.
        longest: Most tokens of a sentence, those around it included; longer ones are cut.
    """

    def __init__(self, tokenizer: Any, *, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def prepare(self, text: str, source: str, target: str, *, whole: bool) -> Prepared:
        """Cut a text into sentences, or take it `whole` as one, and encode them."""
        segmented = self._cut(text, source, whole=whole)
        worded = [_readable(piece.text) for piece in segmented.pieces if has_words(piece.text)]
        encoded = iter(self._thread.submit(encode, self._tokenizer, worded, source).result())
        return Prepared(
            source,
            target,
            segmented,
            tuple(tuple(next(encoded)) if has_words(piece.text) else None for piece in segmented.pieces),
        )

    def _cut(self, text: str, source: str, *, whole: bool) -> Segmented:
        if not has_words(text):  # it stays as it is, so nothing may be put between its pieces
            return _as_one(text)
        segmented = _as_one(text) if whole else segment(text, source)
        return shortened(segmented, longest=self._longest - _SPECIAL, length=self._lengths)

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        found = self._thread.submit(
            self._tokenizer, list(map(_readable, texts)), add_special_tokens=False, split_special_tokens=True
        ).result()
        return [len(ids) for ids in found.input_ids]

    def decode(self, hypotheses: Sequence[Hypothesis]) -> tuple[Translation, ...]:
        """Return the translations of a sentence."""
        tokens = [hypothesis.tokens for hypothesis in hypotheses]
        texts = self._thread.submit(self._tokenizer.batch_decode, tokens, skip_special_tokens=True).result()
        return tuple(
            Translation(text.strip(), h.log_probability, h.mean_log_probability, h.score, h.ended)
            for text, h in zip(texts, hypotheses, strict=True)
        )


def unchanged(text: str) -> tuple[Translation, ...]:
    """Return what stands for the translation of a sentence that stays as it is."""
    return (Translation(text, 0.0, 0.0, 0.0, True),)


def _readable(text: str) -> str:
    """Return a text with a sign in place of each lone surrogate, which tokenizers refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_one(text: str) -> Segmented:
    return divided(text, [len(text)])
