"""Criteria: how much each expert of a stack matters for a language; the higher the score, the sooner it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from nllb_prune.calibration.statistics import Table
from nllb_prune.errors import UsageError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """What a criterion works on, per expert of a stack: arrays (layers, experts), zeros if there was no text."""

    top1: FloatArray
    """Share of the tokens that rank the expert first."""
    top2: FloatArray
    """Share of the tokens that rank it first or second."""
    conf: FloatArray
    """Mean probability over the tokens that rank it first; 0 where there are none."""
    mean: FloatArray
    """Mean probability over all tokens."""
    routed: FloatArray
    """Share of the tokens routed to it: `top2`, or `top1` if the model routes to one expert."""

    @classmethod
    def of(cls, table: Table, *, top_k: int = 2, position: int = 0) -> Shares:
        """Divide the sums of a table by its tokens, in one position class (0 is `all`)."""
        tokens = np.float64(max(int(table["tokens"][position]), 1))
        first = table["first"][position].astype(np.float64)
        top1, top2 = first / tokens, (first + table["second"][position]) / tokens
        return cls(
            top1=top1,
            top2=top2,
            conf=table["p_first"][position] / np.maximum(first, 1.0),
            mean=table["p_all"][position] / tokens,
            routed=top1 if top_k == 1 else top2,
        )

    @classmethod
    def average(cls, shares: Sequence[Shares]) -> Shares:
        """Return the unweighted mean of each statistic, which is how the paper joins directions (arXiv 2212.09811)."""
        return cls(**{f.name: np.mean([getattr(each, f.name) for each in shares], axis=0) for f in fields(cls)})


Criterion = Callable[[Shares], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionInfo:
    """A criterion of the registry."""

    description: str
    build: Callable[[str], Criterion]
    """Makes the criterion for a draw, a text that only `random` looks at."""


def importance(shares: Shares) -> FloatArray:
    """Return `top1 * exp(conf)`, the best criterion of arXiv 2212.09811."""
    return np.asarray(shares.top1 * np.exp(shares.conf))


def vanilla_importance(shares: Shares) -> FloatArray:
    """Return `top1 * conf`."""
    return np.asarray(shares.top1 * shares.conf)


def load_balancing(shares: Shares) -> FloatArray:
    """Return `top1 * mean`."""
    return np.asarray(shares.top1 * shares.mean)


def uniform(draw: str) -> Criterion:
    """Return a criterion of uniform scores in [0, 1) that are the same for equal draws, on any machine."""

    def scores(shares: Shares) -> FloatArray:
        stream = hashlib.shake_256(draw.encode()).digest(8 * shares.top1.size)
        bits = np.frombuffer(stream, dtype="<u8") >> np.uint64(11)  # the 53 bits of a float64 mantissa
        return (bits.astype(np.float64) * 2.0**-53).reshape(shares.top1.shape)

    return scores


def _always(criterion: Criterion) -> Callable[[str], Criterion]:
    return lambda _: criterion


CRITERIA: dict[str, CriterionInfo] = {
    "importance": CriterionInfo(
        description="activity times exp(confidence), top1 * exp(conf): the published winner", build=_always(importance)
    ),
    "top1": CriterionInfo(
        description="activity: share of tokens that rank the expert first", build=_always(lambda shares: shares.top1)
    ),
    "top2": CriterionInfo(
        description="share of tokens that rank the expert first or second", build=_always(lambda shares: shares.top2)
    ),
    "conf": CriterionInfo(
        description="mean probability over the tokens that rank the expert first",
        build=_always(lambda shares: shares.conf),
    ),
    "mean": CriterionInfo(description="mean probability over all tokens", build=_always(lambda shares: shares.mean)),
    "load_balancing": CriterionInfo(description="top1 * mean", build=_always(load_balancing)),
    "vanilla_importance": CriterionInfo(description="top1 * conf", build=_always(vanilla_importance)),
    "frequency": CriterionInfo(
        description="baseline: share of tokens routed to the expert; equals top2 in a top-2 model",
        build=_always(lambda shares: shares.routed),
    ),
    "random": CriterionInfo(description="baseline: uniform scores from the seed", build=uniform),
}


def criterion(name: str, *, seed: int = 0, stack: str = "", key: str = "") -> Criterion:
    """Return a criterion by name; seed, stack and key choose the scores of `random`.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in CRITERIA:
        raise UsageError(f"`criterion` must be one of {', '.join(CRITERIA)}, but is {name} instead.")
    return CRITERIA[name].build(f"{seed}/{stack}/{key}")
