"""The decoding loop: rows join, take steps together, and leave when their search is over.

A row is a sentence with all its beams. Between steps a caller may add sentences and cancel others, so the same loop
serves a list of sentences and a server.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.generation.cache import PROMPT, SourceMemory, TargetCache
from nllb_prune.generation.candidates import best_continuations
from nllb_prune.generation.footprint import Held, Rows
from nllb_prune.generation.search import Hypothesis, Search, SearchSettings, new_search
from nllb_prune.model.blocks import Blocks, DecoderCall, encode, hide, keep_by_token
from nllb_prune.tokenization import pad


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """A sentence to translate."""

    key: Hashable
    """The caller's name for it."""
    source: Sequence[int]
    """Tokens with the source language and `</s>`."""
    language: int
    """Token of the target language."""
    limit: int
    """Tokens to generate at most, the language token and `</s>` counted; at least 2."""
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    """Experts it may use by stack ``(sparse layers, experts)``, boolean, on the model's device; a stack that is not
    named uses all. Sentences that share a mask should share the tensor."""


@dataclass(slots=True)
class _Row:
    sentence: Sentence
    search: Search


class DecodingLoop:
    """Translates sentences step by step, each within its own experts.

    Args:
        blocks: The model.
        settings: How to search; the same for all rows.
        device: Of the model.
    """

    def __init__(self, blocks: Blocks, settings: SearchSettings, *, device: torch.device | str = "cpu") -> None:
        self.blocks, self.settings, self.device = blocks, settings, torch.device(device)
        self._rows: list[_Row] = []
        self._cache = TargetCache(layers=len(blocks.decoder), beams=settings.beams)
        self._source = SourceMemory()
        self._keep: Tensor | None = None

    def __len__(self) -> int:
        """Return how many sentences are being translated."""
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest source being translated; the others take as much memory."""
        return max((len(row.sentence.source) for row in self._rows), default=0)

    @property
    def in_flight(self) -> Rows:
        """Sentences being translated, the longest source and the highest limit."""
        return Rows(len(self), self.longest, max((row.sentence.limit for row in self._rows), default=0))

    @property
    def held(self) -> Held:
        """What there is memory for."""
        return Held(*self._cache.size, self._source.size)

    @torch.inference_mode()
    def add(self, sentences: Sequence[Sentence]) -> dict[Hashable, list[Hypothesis]]:
        """Encode sentences and let them join; the first token of each is chosen here.

        Returns:
            Hypotheses, best first, of those that are already finished, by key.
        """
        if not sentences:
            return {}
        self._check(sentences)
        try:
            return self._add(sentences)
        except BaseException:
            for memory in (self._cache, self._source):
                memory.move([], len(self._rows))  # as if they had never come
            raise

    def _check(self, sentences: Sequence[Sentence]) -> None:
        shortest = min(sentence.limit for sentence in sentences)
        if shortest < PROMPT:
            raise UsageError(f"`limit` must be {PROMPT} or more, the language token and one more, but is {shortest}.")
        here = {row.sentence.key for row in self._rows}
        for sentence in sentences:
            if sentence.key in here:
                raise UsageError(f"`key` must be of one sentence alone, but {sentence.key!r} is of two.")
            here.add(sentence.key)

    def _add(self, sentences: Sequence[Sentence]) -> dict[Hashable, list[Hypothesis]]:
        blocks = self.blocks
        blocks.reserve(max(sentence.limit for sentence in sentences) + 1)
        ids = pad([sentence.source for sentence in sentences], blocks.pad).to(self.device)
        encoded = encode(blocks, ids, self._keep_rows("encoder", sentences))
        source = [block.source(encoded.memory) for block in blocks.decoder]
        prompts = torch.tensor([[blocks.start, sentence.language] for sentence in sentences], device=self.device)
        states = blocks.embed_target(prompts, torch.arange(PROMPT, device=self.device))
        keep = self._keep_rows("decoder", sentences)
        future = torch.ones(1, 1, PROMPT, PROMPT, dtype=torch.bool, device=self.device).triu(1)
        call = DecoderCall(
            past=self._cache.join(len(sentences), states),
            visible=hide(future, states),
            source_visible=encoded.visible,
            positions=None,
            keep=None if keep is None else keep_by_token(keep, length=PROMPT),
        )
        for block, memory in zip(blocks.decoder, source, strict=True):
            states = block(states, memory, call)
        joined = [_Row(s, new_search(self.settings, end=blocks.end, limit=s.limit)) for s in sentences]
        parents = self._choose(joined, states[:, -1:])
        self._source.join(source, encoded.visible, [len(sentence.source) for sentence in sentences])
        self._rows += joined
        self._keep = self._decoder_keep()
        return self._leave([n for n, row in enumerate(parents, len(self._rows) - len(joined)) if row is None])

    @torch.inference_mode()
    def step(self) -> dict[Hashable, list[Hypothesis]]:
        """Generate one token of each row.

        Returns:
            Hypotheses, best first, of the sentences that are finished now, by key.
        """
        rows, cache, blocks = self._rows, self._cache, self.blocks
        if not rows:
            return {}
        visible = cache.begin_step()
        tokens = torch.tensor([row.search.tokens for row in rows], device=self.device)
        positions = torch.tensor([[cache.column - start] for start in cache.starts], device=self.device)
        states = blocks.embed_target(tokens, positions)
        call = DecoderCall(
            past=cache, visible=visible, source_visible=self._source.visible, positions=None, keep=self._keep
        )
        for number, block in enumerate(blocks.decoder):
            states = block(states, self._source.layer(number), call)
        parents = self._choose(rows, states)
        stay = list(range(self.settings.beams))
        cache.end_step([stay if row is None else row for row in parents])
        return self._leave([n for n, row in enumerate(parents) if row is None])

    @torch.inference_mode()
    def cancel(self, keys: Iterable[Hashable]) -> None:
        """Drop sentences that nobody waits for any more; keys that are not here are ignored."""
        dropped = set(keys)
        self._leave([n for n, row in enumerate(self._rows) if row.sentence.key in dropped])

    def _keep_rows(self, stack: str, sentences: Sequence[Sentence]) -> Tensor | None:
        """Return the masks of a stack ``(sentences or 1, layers, experts)``, or `None` if nobody has one."""
        masks = [sentence.keep.get(stack) for sentence in sentences]
        given = next((mask for mask in masks if mask is not None), None)
        if given is None:
            return None
        if all(mask is masks[0] for mask in masks):
            return given.unsqueeze(0)
        everything = torch.ones_like(given)
        return torch.stack([everything if mask is None else mask for mask in masks])

    def _decoder_keep(self) -> Tensor | None:
        keep = self._keep_rows("decoder", [row.sentence for row in self._rows])
        return None if keep is None else keep_by_token(keep, length=self.settings.beams)

    def _choose(self, rows: Sequence[_Row], states: Tensor) -> list[list[int] | None]:
        """Let the searches of rows go on by one token, given the decoder states of their beams ``(rows, beams, D)``."""
        before = torch.tensor([row.search.scores for row in rows], device=self.device)
        found = best_continuations(self.blocks.logits(states), before, self.settings.candidates)
        candidates = zip(rows, *(side.tolist() for side in found), strict=True)
        return [row.search.advance(scores, tokens, parents) for row, scores, tokens, parents in candidates]

    def _leave(self, leaving: Sequence[int]) -> dict[Hashable, list[Hypothesis]]:
        """Take rows out; the last ones move into their places."""
        if not leaving:
            return {}
        done = {self._rows[n].sentence.key: self._rows[n].search.hypotheses() for n in leaving}
        gone, count = set(leaving), len(self._rows) - len(leaving)
        holes = [n for n in sorted(gone) if n < count]
        last = [n for n in range(count, len(self._rows)) if n not in gone]
        moves = list(zip(holes, last, strict=True))
        for to, source in moves:
            self._rows[to] = self._rows[source]
        del self._rows[count:]
        self._cache.move(moves, count)
        self._source.move(moves, count)
        self._keep = self._decoder_keep() if self._rows else None
        return done
