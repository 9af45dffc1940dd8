"""Arrival traces: when which sentence came, recorded with a seed and read back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.random import Generator

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction, language_set

_COLUMNS = "seconds\tsource\ttarget\ttokens"
_HOME = "eng_Latn"
_HOME_SHARE = 0.8  # of the sentences from or into English in a skewed mix
_TOKENS = (3.3, 0.5, 4, 160)  # logarithmic mean and deviation, least, most: 27 tokens in the middle
_BURST = 4.0  # mean seconds with and without one
_FLOOD = 0.8  # of the sentences of a burst that are of one direction

_Drawn = tuple[float, Direction]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A sentence that came."""

    seconds: float
    """Since the trace began."""
    source: str
    target: str
    tokens: int
    """Of the source, and steps that it takes."""


def record(mix: str, *, requests: int, rate: float, seed: int) -> list[Arrived]:
    """Draw a trace.

    Args:
        mix: Of `MIXES`.
        requests: Sentences.
        rate: Sentences a second, in the mean; nobody waits for answers.
        seed: The same one gives the same trace.
    """
    random = np.random.default_rng(seed)
    codes = [str(code) for code in random.permutation(language_set("nllb-202").codes)]
    mean, deviation, least, most = _TOKENS
    tokens = np.clip(random.lognormal(mean, deviation, requests).round(), least, most).astype(int).tolist()
    drawn = islice(MIXES[mix](random, codes, rate), requests)
    return [
        Arrived(round(seconds, 4), source, target, count)
        for (seconds, (source, target)), count in zip(drawn, tokens, strict=True)
    ]


def _skewed(random: Generator, codes: Sequence[str], rate: float) -> Iterator[_Drawn]:
    """Yield languages by Zipf's law, with English on one side of most sentences."""
    seconds, draw = 0.0, _zipf(random, codes)
    while True:
        seconds += random.exponential(1 / rate)
        yield seconds, draw()


def _bursts(random: Generator, codes: Sequence[str], rate: float) -> Iterator[_Drawn]:
    """Yield the skewed mix; by turns four times as much, most of it in one direction, and as much as before."""
    draw, seconds, burst = _zipf(random, codes), 0.0, False
    calm = rate / 2.5  # so that calm and bursts, which last as long, make `rate` in the mean
    while True:
        end, hot = seconds + random.exponential(_BURST), draw()
        while (seconds := seconds + random.exponential(1 / (4 * calm if burst else calm))) < end:
            yield seconds, hot if burst and random.random() < _FLOOD else draw()
        seconds, burst = end, not burst


def _uniform(random: Generator, codes: Sequence[str], rate: float) -> Iterator[_Drawn]:
    """Yield all directions alike."""
    seconds = 0.0
    while True:
        seconds += random.exponential(1 / rate)
        source, target = random.choice(len(codes), 2, replace=False)
        yield seconds, (codes[source], codes[target])


def _zipf(random: Generator, codes: Sequence[str]) -> Callable[[], Direction]:
    others = [code for code in codes if code != _HOME]
    shares = 1 / np.arange(1, len(others) + 1)
    edges = np.cumsum(shares / shares.sum())

    def one() -> str:
        return others[min(int(np.searchsorted(edges, random.random())), len(others) - 1)]

    def draw() -> Direction:
        code = other = one()
        if random.random() < _HOME_SHARE:
            return (_HOME, code) if random.random() < 0.5 else (code, _HOME)
        while other == code:
            other = one()
        return code, other

    return draw


MIXES: dict[str, Callable[[Generator, Sequence[str], float], Iterator[_Drawn]]] = {
    "skewed": _skewed,
    "bursts": _bursts,
    "uniform": _uniform,
}
"""What a trace can be drawn from."""


def write_trace(path: Path, trace: Sequence[Arrived]) -> None:
    """Write a trace as tab-separated values."""
    rows = (f"{each.seconds:.4f}\t{each.source}\t{each.target}\t{each.tokens}" for each in trace)
    path.write_text("\n".join([_COLUMNS, *rows]) + "\n", encoding="utf-8")


def read_trace(path: Path) -> list[Arrived]:
    """Read a trace.

    Raises:
        UsageError: if it is none, or its sentences are not in the order in which they came.
    """
    head, *rows = path.read_text(encoding="utf-8").splitlines()
    if head != _COLUMNS:
        raise UsageError(f"`trace` must begin with the columns {_COLUMNS.split()}, but {path} has {head!r} instead.")
    trace = [_arrived(path, number, row) for number, row in enumerate(rows, start=2)]
    if any(later.seconds < earlier.seconds for earlier, later in pairwise(trace)):
        raise UsageError(f"`trace` must be in the order of its seconds, but {path} is not.")
    return trace


def _arrived(path: Path, number: int, row: str) -> Arrived:
    try:
        seconds, source, target, tokens = row.split("\t")
        return Arrived(float(seconds), source, target, int(tokens))
    except ValueError:
        raise UsageError(f"`trace` must have {_COLUMNS.split()} in each row, but {path}:{number} is {row!r}.") from None
