"""Texts to sentences of tokens, and translations of sentences to translations of texts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from nllb_prune.generation.search import Hypothesis
from nllb_prune.generation.translate import Translation
from nllb_prune.languages import Direction
from nllb_prune.long_sentences import shortened
from nllb_prune.segmentation import Segmented, divided, has_words, segment
from nllb_prune.tokenization import MAX_LENGTH

Result = TypeVar("Result")
Steps: TypeAlias = Generator[None, None, Result]
"""Work that may be left between its steps for a while, and what comes of it."""

_SPECIAL = 2
"""Language token and `</s>`."""
_SENTENCES, _CHARACTERS = 64, 10_000
"""That are encoded together: while they are, nobody else's are."""
_TURN = 0.003
"""Seconds of steps until it is somebody else's turn."""


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
    a sentence with 64 threads; with one .5, until it is full at 3 MB). Whoever has much for it takes turns with others.

    Args:
        tokenizer: Of the model.
        tokens: Of the languages, by their codes.
        longest: Most tokens of a sentence, those around it included; longer ones are cut.
    """

    def __init__(self, tokenizer: Any, tokens: Mapping[str, int], *, longest: int) -> None:
        self._tokenizer, self._tokens, self._longest = tokenizer, tokens, longest
        self._end: int = tokenizer.eos_token_id
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    def prepare(
        self, texts: Sequence[str], directions: Sequence[Direction], *, whole: bool, look: Callable[[], None]
    ) -> list[Prepared]:
        """Cut texts into sentences, or take each `whole` as one, and encode them.

        Args:
            texts: Of any length.
            directions: Of each.
            whole: Cuts what is too long only.
            look: Is called before each text and each portion of sentences; an error of it ends the work.
        """
        cut, words = [], _Words(self._encoded, look)
        for text, (source, _) in zip(texts, directions, strict=True):
            look()
            cut.append(segment(text, source) if has_words(text) and not whole else divided(text, [len(text)]))
        words.add(piece.text for segmented in cut if _worded(segmented) for piece in segmented.pieces)
        found = []
        for segmented, direction in zip(cut, directions, strict=True):
            look()
            found.append(self._prepared(segmented, direction, words))
        return found

    def _prepared(self, segmented: Segmented, direction: Direction, words: _Words) -> Prepared:
        if _worded(segmented):  # else it stays as it is, so nothing may be put between its pieces
            segmented = shortened(segmented, longest=self._longest - _SPECIAL, length=words.lengths)
        language = self._tokens[direction[0]]
        tokens = (
            (language, *words.of(piece.text), self._end) if has_words(piece.text) else None
            for piece in segmented.pieces
        )
        return Prepared(*direction, segmented, tuple(tokens))

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the words of each text, without those around them."""
        readable = list(map(_readable, texts))
        found = self._thread.submit(
            self._tokenizer, readable, add_special_tokens=False, split_special_tokens=True
        ).result()
        return found.input_ids  # type: ignore[no-any-return]

    def decoded(self, hypotheses: Sequence[Hypothesis]) -> tuple[Translation, ...]:
        """Return the translations of a sentence; for steps that are taken `in_turns` alone."""
        texts = self._tokenizer.batch_decode([each.tokens for each in hypotheses], skip_special_tokens=True)
        return tuple(
            Translation(text.strip(), h.log_probability, h.mean_log_probability, h.score, h.ended)
            for text, h in zip(texts, hypotheses, strict=True)
        )

    def in_turns(self, steps: Steps[Result], *, after: Sequence[Future[Any]]) -> Future[Result]:
        """Take steps in the tokenizer's thread, a few milliseconds of them at a time.

        Args:
            steps: Short ones, and what comes of them; none is taken when the future that is returned is cancelled.
            after: What must be finished before; all, or one that fails and those before it.
        """
        result: Future[Result] = Future()
        _when_finished(after, 0, lambda: self._go_on(steps, result))
        return result

    def _go_on(self, steps: Steps[Result], result: Future[Result]) -> None:
        try:
            self._thread.submit(self._turn, steps, result)
        except RuntimeError as error:  # the interpreter ends
            with suppress(InvalidStateError):
                result.set_exception(error)

    def _turn(self, steps: Steps[Result], result: Future[Result]) -> None:
        end = monotonic() + _TURN
        with suppress(InvalidStateError):  # cancelled just now
            try:
                while monotonic() < end and not result.cancelled():
                    next(steps)
            except StopIteration as over:
                result.set_result(over.value)
            except BaseException as error:
                result.set_exception(error)
            else:
                if not result.cancelled():
                    self._go_on(steps, result)


class _Words:
    """The ids of the words of sentences, each encoded once.

    Args:
        encode: Of several sentences, without the tokens around them.
        look: Is called before each portion.
    """

    def __init__(self, encode: Callable[[Sequence[str]], list[list[int]]], look: Callable[[], None]) -> None:
        self._encode, self._look = encode, look
        self._ids: dict[str, list[int]] = {}

    def add(self, sentences: Iterable[str]) -> None:
        """Encode what is new, portion by portion."""
        for portion in _portions([each for each in dict.fromkeys(sentences) if each not in self._ids]):
            self._look()
            self._ids.update(zip(portion, self._encode(portion), strict=True))

    def lengths(self, sentences: Sequence[str]) -> list[int]:
        """Return how many ids each sentence has."""
        self.add(sentences)
        return [len(self._ids[each]) for each in sentences]

    def of(self, sentence: str) -> list[int]:
        """Return the ids of a sentence that was added, cut to what a model takes."""
        return self._ids[sentence][: MAX_LENGTH - _SPECIAL]


def unchanged(text: str) -> tuple[Translation, ...]:
    """Return what stands for the translation of a sentence that stays as it is."""
    return (Translation(text, 0.0, 0.0, 0.0, True),)


def _worded(segmented: Segmented) -> bool:
    """Return whether there is anything to translate in a text."""
    return any(has_words(piece.text) for piece in segmented.pieces)


def _portions(sentences: Iterable[str]) -> Iterator[list[str]]:
    """Yield sentences in portions that take a few milliseconds to encode."""
    portion: list[str] = []
    size = 0
    for sentence in sentences:
        portion.append(sentence)
        size += len(sentence)
        if len(portion) == _SENTENCES or size >= _CHARACTERS:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _when_finished(futures: Sequence[Future[Any]], first: int, then: Callable[[], None]) -> None:
    """Call `then` when futures are finished, or one of them fails and those before it are finished."""
    for number in range(first, len(futures)):
        future = futures[number]
        if not future.done():
            future.add_done_callback(lambda _, number=number: _when_finished(futures, number, then))  # type: ignore[misc]
            return
        if future.cancelled() or future.exception() is not None:
            break
    then()


def _readable(text: str) -> str:
    """Return a text with a sign in place of each lone surrogate, which tokenizers refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
