"""Greedy and beam search of one sentence: pure bookkeeping over the candidates that the model offers.

The rules are those of transformers 4.57.6 (`GenerationMixin._beam_search`): twice as many candidates as beams, of which
the first half may finish; finished ones compete by log-probability over length to the power of the length penalty, the
forced language token counted in the length; the two kinds of early stopping and the heuristic between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nllb_prune.errors import UsageError

EarlyStopping = Literal[False, True, "never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """How translations are searched for."""

    beams: int = 1
    """1 is greedy."""
    alternatives: int = 1
    """Hypotheses wanted, best first; at most as many as beams."""
    length_penalty: float = 1.0
    """Power of the length that a finished log-probability is divided by: above 0 favours long translations."""
    early_stopping: EarlyStopping = False
    """True: stop at as many finished hypotheses as beams. False: stop when the best open one, at its present length,
    would not enter. `never`: only when none could ever enter."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.beams < 1:
            raise UsageError(f"`beams` must be 1 or more, but is {self.beams} instead.")
        if not 1 <= self.alternatives <= self.beams:
            raise UsageError(
                f"`alternatives` must be from 1 to the number of beams, but is {self.alternatives} of {self.beams} "
                "instead; search with more beams."
            )
        if not math.isfinite(self.length_penalty):
            raise UsageError(f"`length_penalty` must be a finite number, but is {self.length_penalty} instead.")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise UsageError(f"`early_stopping` must be False, True or 'never', but is {self.early_stopping} instead.")

    @property
    def candidates(self) -> int:
        """Continuations of a sentence to look at in each step: each beam has one way to end, so half of them go on."""
        return 1 if self.beams == 1 else 2 * self.beams


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A translation as tokens."""

    tokens: tuple[int, ...]
    """After the language token, without `</s>`."""
    log_probability: float
    """Sum over the tokens and `</s>`; the language token is given, so it adds nothing."""
    ended: bool
    """Whether it came to `</s>`; otherwise it was cut at its limit."""
    score: float
    """What finished hypotheses compete by: log-probability / length ** length penalty."""

    @property
    def mean_log_probability(self) -> float:
        """Mean log-probability of the tokens, `</s>` counted."""
        return self.log_probability / max(1, len(self.tokens) + self.ended)


class Search(Protocol):
    """The search for translations of one sentence."""

    tokens: list[int]
    """Last token of each beam: what the decoder reads next."""
    scores: list[float]
    """Log-probability of each beam."""

    def advance(self, scores: Sequence[float], tokens: Sequence[int], parents: Sequence[int]) -> list[int] | None:
        """Take a step.

        Args:
            scores: Log-probabilities of the candidate continuations, best first.
            tokens: Their last tokens.
            parents: The beams they continue.

        Returns:
            The beam that each new beam continues, or `None` when the search is over.
        """

    def hypotheses(self) -> list[Hypothesis]:
        """Return what was found, best first."""


@dataclass(slots=True)
class GreedySearch:
    """Takes the best token until it is `</s>`."""

    end: int
    limit: int
    """Tokens to generate at most, the language token and `</s>` counted."""
    settings: SearchSettings
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=lambda: [0.0])
    found: list[int] = field(default_factory=list)
    ended: bool = False

    def advance(self, scores: Sequence[float], tokens: Sequence[int], parents: Sequence[int]) -> list[int] | None:
        """Take a step."""
        self.scores = [scores[0]]
        self.ended = tokens[0] == self.end
        if not self.ended:
            self.found.append(tokens[0])
            self.tokens = [tokens[0]]
        return None if self.ended or len(self.found) + 1 >= self.limit else [0]

    def hypotheses(self) -> list[Hypothesis]:
        """Return the one hypothesis."""
        length = 1 + len(self.found) + self.ended
        score = self.scores[0] / length**self.settings.length_penalty
        return [Hypothesis(tuple(self.found), self.scores[0], self.ended, score)]


@dataclass(frozen=True, slots=True)
class _Beam:
    """A token and what came before it."""

    token: int
    before: _Beam | None

    def sequence(self) -> tuple[int, ...]:
        tokens, beam = [self.token], self.before
        while beam is not None:
            tokens.append(beam.token)
            beam = beam.before
        return tuple(reversed(tokens))


@dataclass(slots=True)
class BeamSearch:
    """Keeps the best open hypotheses and the best finished ones."""

    end: int
    limit: int
    """Tokens to generate at most, the language token and `</s>` counted."""
    settings: SearchSettings
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=lambda: [0.0])
    length: int = 1
    """Tokens generated so far, the language token counted."""
    open: list[_Beam | None] = field(default_factory=lambda: [None])
    finished: list[Hypothesis] = field(default_factory=list)

    def advance(self, scores: Sequence[float], tokens: Sequence[int], parents: Sequence[int]) -> list[int] | None:
        """Take a step."""
        beams = self.settings.beams
        self.length += 1
        at_limit = self.length >= self.limit
        chosen: list[int] = []
        opened: list[_Beam | None] = []
        continued: list[int] = []
        for rank, (score, token, parent) in enumerate(zip(scores, tokens, parents, strict=True)):
            if token == self.end or at_limit:
                if rank < beams:
                    self._finish(score, token, self.open[parent])
            elif len(chosen) < beams:
                chosen.append(rank)
                opened.append(_Beam(token, self.open[parent]))
                continued.append(parent)
        self.open = opened
        self.tokens, self.scores = [tokens[rank] for rank in chosen], [scores[rank] for rank in chosen]
        return None if at_limit or self._settled() else continued

    def _finish(self, score: float, token: int, before: _Beam | None) -> None:
        ended = token == self.end
        beam = before if ended else _Beam(token, before)
        words = () if beam is None else beam.sequence()
        self.finished.append(Hypothesis(words, score, ended, score / self.length**self.settings.length_penalty))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)  # stable: the earlier of equals first
        del self.finished[self.settings.beams :]

    def _settled(self) -> bool:
        """Return whether no open hypothesis is to be waited for."""
        settings = self.settings
        if len(self.finished) < settings.beams:
            return False
        if settings.early_stopping is True:
            return True
        at_best = self.limit if settings.early_stopping == "never" and settings.length_penalty > 0 else self.length
        best: float = self.scores[0] / at_best**settings.length_penalty
        return best <= self.finished[-1].score

    def hypotheses(self) -> list[Hypothesis]:
        """Return the finished hypotheses, best first."""
        return self.finished[: self.settings.alternatives]


def new_search(settings: SearchSettings, *, end: int, limit: int) -> Search:
    """Return the search that the settings ask for."""
    kind = GreedySearch if settings.beams == 1 else BeamSearch
    return kind(end=end, limit=limit, settings=settings)
