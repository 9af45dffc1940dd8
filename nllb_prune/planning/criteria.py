"""Criteria: how much each expert of a stack matters for a language; the higher the score, the sooner it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.planning.evidence import Evidence, FloatArray

Statistic = Callable[[Evidence], FloatArray]

# Least standard deviation, for logarithms: what the grids of the squares (2**-14 and 2**-36) resolve for 64 tokens.
_LEAST_OUTPUT, _LEAST_GRADIENT = 2.0**-10, 2.0**-21


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """A statistic of the experts, and which of them it lets go."""

    formula: str
    """In one line; f is an expert's output, g its combining weight, p its probability."""
    source: str
    score: Statistic
    """The statistic itself (layers, experts), as in the formula."""
    drops: Literal["lowest", "highest"] = "lowest"
    groups: tuple[str, ...] = ()
    """Groups of statistics it needs beside `core`."""
    same_as: str | None = None
    """Criterion that ranks the experts of a layer identically, in a top-2 model."""
    mass: bool = False
    """Whether scores are amounts, not negative, that can be divided by their sum in a layer."""
    opposite: Statistic | None = None
    """The statistic that takes its place in reverse, dropped the same way; by default the other end is dropped."""


def top1(evidence: Evidence) -> FloatArray:
    """Return the share of tokens that rank the expert first: its activity (arXiv 2212.09811)."""
    return evidence.top1


def top2(evidence: Evidence) -> FloatArray:
    """Return the share of tokens that rank the expert first or second (arXiv 2212.09811)."""
    return evidence.top2


def mean(evidence: Evidence) -> FloatArray:
    """Return the mean of p over all tokens (arXiv 2212.09811)."""
    return evidence.mean


def confidence(evidence: Evidence) -> FloatArray:
    """Return the mean of p over the tokens that rank the expert first (arXiv 2212.09811)."""
    return evidence.confidence


def load_balance(evidence: Evidence) -> FloatArray:
    """Return `top1 * mean` (arXiv 2212.09811)."""
    return np.asarray(evidence.top1 * evidence.mean)


def importance_vanilla(evidence: Evidence) -> FloatArray:
    """Return `top1 * confidence` (arXiv 2212.09811)."""
    return np.asarray(evidence.top1 * evidence.confidence)


def importance(evidence: Evidence) -> FloatArray:
    """Return `top1 * exp(confidence)`, the best of arXiv 2212.09811."""
    return np.asarray(evidence.top1 * np.exp(evidence.confidence))


def frequency(evidence: Evidence) -> FloatArray:
    """Return the share of tokens routed to the expert (EUF of arXiv 2504.05586)."""
    return evidence.routed


def soft(evidence: Evidence) -> FloatArray:
    """Return the sum of p over all tokens (soft counting of SEER-MoE, arXiv 2404.05089)."""
    return evidence.soft


def soft_topk(evidence: Evidence) -> FloatArray:
    """Return the sum of p over the routed tokens; SEER-MoE (arXiv 2404.05089) leaves open which tokens it sums over."""
    return evidence.soft_topk


def alpha(evidence: Evidence) -> FloatArray:
    """Return the sum of g over that of all living experts of the layer (arXiv 2206.00277); those that go have none."""
    gate = evidence.routing_mass
    total = gate.sum(axis=1, keepdims=True)
    return np.asarray(gate / np.where(total > 0, total, 1.0))


def routing_mass(evidence: Evidence) -> FloatArray:
    """Return the mean of g over all tokens, 0 for those not routed to the expert (arXiv 2605.28042)."""
    return evidence.routing_mass


def reap(evidence: Evidence) -> FloatArray:
    """Return the mean of g |f| over the routed tokens (REAP, arXiv 2510.13999)."""
    return evidence.gate_norm_mean


def reap_l2(evidence: Evidence) -> FloatArray:
    """Return the root of the mean of g^2 |f|^2 over the routed tokens, a variant of REAP (arXiv 2510.13999)."""
    return evidence.gate_norm_rms


def ean_mean(evidence: Evidence) -> FloatArray:
    """Return the mean of |f| over the routed tokens (EAN mean of arXiv 2510.13999)."""
    return evidence.norm_mean


def ean_sum(evidence: Evidence) -> FloatArray:
    """Return the sum of |f| over the routed tokens (EAN sum of arXiv 2510.13999)."""
    return evidence.norm_sum


def weighted_ean_sum(evidence: Evidence) -> FloatArray:
    """Return the sum of g |f| over the routed tokens (weighted EAN sum of arXiv 2510.13999)."""
    return evidence.gate_norm_sum


def max_activation(evidence: Evidence) -> FloatArray:
    """Return the largest absolute element of f over the routed tokens (arXiv 2510.13999)."""
    return evidence.activation_max


def mc_ean(evidence: Evidence) -> FloatArray:
    """Return the sum over dimensions of the Euclidean norm of f over tokens (EAN of MC-Suite, arXiv 2504.05586)."""
    return np.asarray(np.sqrt(evidence.output_squared).sum(axis=2))


def mc_eae(evidence: Evidence) -> FloatArray:
    """Return the sum over dimensions of log std of f over the routed tokens (EAE of MC-Suite, arXiv 2504.05586).

    A standard deviation below 2**-10, which the sums do not resolve, counts as that; so do those of an expert with
    fewer than two tokens, which therefore is lowest.
    """
    return _log_deviations(evidence.routed_tokens, evidence.output_sum, evidence.output_squared, least=_LEAST_OUTPUT)


def vocabulary_coverage(evidence: Evidence) -> FloatArray:
    """Return the share of the token ids that were routed to the expert (EVTC of MC-Suite, arXiv 2504.05586).

    Dropping experts of a wide vocabulary hurts there, so those of the narrowest go.
    """
    return np.asarray(evidence.vocabulary / evidence.vocabulary_size)


def co_selection(evidence: Evidence) -> FloatArray:
    """Return the round in which each expert goes when the pair least often chosen together loses one (ECC).

    MC-Suite (arXiv 2504.05586) takes the pair of experts with the lowest count of tokens that go to both, and drops
    the one that fewer tokens go to. Rounds count from 1; the last expert gets the number of experts. Of several such
    pairs the least used of all their experts goes, and of equally used ones that of the highest id.
    """
    return _rounds(evidence.together, evidence.routed_tokens)


def co_selection_most(evidence: Evidence) -> FloatArray:
    """Return the same for the pair most often chosen together: the opposite of `co_selection`."""
    return _rounds(-evidence.together, evidence.routed_tokens)


def shared_tokens(evidence: Evidence) -> FloatArray:
    """Return the sum over the other experts of the distinct ids routed to both (ETS of MC-Suite, arXiv 2504.05586)."""
    return evidence.shared_ids


def egn(evidence: Evidence) -> FloatArray:
    """Return the sum over dimensions of the norm of the gradient over tokens (EGN of MC-Suite, arXiv 2504.05586).

    The paper leaves open which gradient. Here it is that of the token loss at the expert's output.
    """
    return np.asarray(np.sqrt(evidence.gradient_squared).sum(axis=2))


def ege(evidence: Evidence) -> FloatArray:
    """Return the sum over dimensions of log std of the gradient over tokens (EGE of MC-Suite, arXiv 2504.05586).

    The paper leaves open which gradient. Here it is that of the token loss at the expert's output. As in `mc_eae`,
    there is a least standard deviation: 2**-21.
    """
    return _log_deviations(
        evidence.routed_tokens, evidence.gradient_sum, evidence.gradient_squared, least=_LEAST_GRADIENT
    )


def expert_weight_norm(evidence: Evidence) -> FloatArray:
    """Return the Euclidean norm of the expert's weights (EWN of MC-Suite, arXiv 2504.05586)."""
    return evidence.weight_norm


def expert_similarity(evidence: Evidence) -> FloatArray:
    """Return the sum of cosines of its weights with the other experts' (EWS of MC-Suite, arXiv 2504.05586)."""
    return evidence.weight_similarity


def router_weight_norm(evidence: Evidence) -> FloatArray:
    """Return the norm of its row of the router (RWN of arXiv 2504.05586, whose best by weights drops the highest)."""
    return evidence.router_norm


def stable_rank(evidence: Evidence) -> FloatArray:
    """Return `sum s^2 / max s^2` over singular values s; dominant experts have little (WSR of arXiv 2504.05586)."""
    return evidence.stable_rank


def uniform(evidence: Evidence) -> FloatArray:
    """Return uniform scores in [0, 1) that are the same for equal draws, on any machine."""
    layers, experts = evidence.shape
    stream = hashlib.shake_256(evidence.draw.encode()).digest(8 * layers * experts)
    bits = np.frombuffer(stream, dtype="<u8") >> np.uint64(11)  # the 53 bits of a float64 mantissa
    return (bits.astype(np.float64) * 2.0**-53).reshape(layers, experts)


def _log_deviations(tokens: FloatArray, sums: FloatArray, squares: FloatArray, *, least: float) -> FloatArray:
    """Return the sum over the last axis of the log of the standard deviations, from sums over tokens."""
    count = np.maximum(tokens, 1.0)[..., None]  # (layers, experts, 1)
    variance = np.where(tokens[..., None] >= 2, squares / count - (sums / count) ** 2, 0.0)
    return np.asarray(np.log(np.maximum(variance, least**2)).sum(axis=2) / 2)


def _rounds(together: FloatArray, used: FloatArray) -> FloatArray:
    """Return the round in which each expert goes if one of the pair of the lowest count does.

    Args:
        together: count of each pair (layers, experts, experts), symmetric; modified.
        used: tokens of each expert (layers, experts).
    """
    layers, experts = used.shape
    every = np.arange(layers)
    together[:, np.arange(experts), np.arange(experts)] = np.inf
    left = np.argsort(np.argsort(-used, axis=1, kind="stable"), axis=1)  # 0 the most used: the order to stay in
    rounds = np.full((layers, experts), float(experts))
    for number in range(1, experts):
        lowest = together.min(axis=2)  # of each expert's pairs, (layers, experts)
        paired = lowest == lowest.min(axis=1, keepdims=True)
        goes = np.where(paired, left, -1).argmax(axis=1)
        rounds[every, goes] = number
        together[every, goes, :] = together[every, :, goes] = np.inf
    return rounds


_KOISHEKENOV, _SEER, _REAP = "arXiv 2212.09811", "SEER-MoE, arXiv 2404.05089", "REAP, arXiv 2510.13999"
_MC_SUITE = "MC-Suite, arXiv 2504.05586"

CRITERIA: dict[str, Criterion] = {
    "importance": Criterion(
        formula="top1 * exp(confidence)", source=f"{_KOISHEKENOV}, its best", score=importance, mass=True
    ),
    "top1": Criterion(formula="share of tokens that rank the expert first", source=_KOISHEKENOV, score=top1, mass=True),
    "top2": Criterion(
        formula="share of tokens that rank it first or second", source=_KOISHEKENOV, score=top2, mass=True
    ),
    "mean": Criterion(formula="mean of p over all tokens", source=_KOISHEKENOV, score=mean, mass=True),
    "confidence": Criterion(
        formula="mean of p over the tokens that rank it first", source=_KOISHEKENOV, score=confidence
    ),
    "load_balance": Criterion(formula="top1 * mean", source=_KOISHEKENOV, score=load_balance, mass=True),
    "importance_vanilla": Criterion(
        formula="top1 * confidence", source=_KOISHEKENOV, score=importance_vanilla, mass=True
    ),
    "frequency": Criterion(
        formula="share of tokens routed to it", source=_SEER, score=frequency, same_as="top2", mass=True
    ),
    "soft": Criterion(formula="sum of p over all tokens", source=_SEER, score=soft, same_as="mean", mass=True),
    "soft_topk": Criterion(formula="sum of p over the routed tokens", source=_SEER, score=soft_topk, mass=True),
    "alpha": Criterion(
        formula="sum of g, divided by that of all experts of the layer",
        source="Chen et al., arXiv 2206.00277",
        score=alpha,
        same_as="routing_mass",
        mass=True,
    ),
    "routing_mass": Criterion(
        formula="mean of g over all tokens", source="arXiv 2605.28042", score=routing_mass, mass=True
    ),
    "reap": Criterion(
        formula="mean of g |f| over the routed tokens", source=_REAP, score=reap, groups=("norms",), mass=True
    ),
    "reap_l2": Criterion(
        formula="root of the mean of (g |f|)^2 over the routed tokens",
        source=_REAP,
        score=reap_l2,
        groups=("norms",),
        mass=True,
    ),
    "ean_mean": Criterion(
        formula="mean of |f| over the routed tokens", source=_REAP, score=ean_mean, groups=("norms",), mass=True
    ),
    "ean_sum": Criterion(
        formula="sum of |f| over the routed tokens", source=_REAP, score=ean_sum, groups=("norms",), mass=True
    ),
    "weighted_ean_sum": Criterion(
        formula="sum of g |f| over the routed tokens",
        source=_REAP,
        score=weighted_ean_sum,
        groups=("norms",),
        mass=True,
    ),
    "max_activation": Criterion(
        formula="largest absolute element of f", source=_REAP, score=max_activation, groups=("norms",)
    ),
    "mc_ean": Criterion(
        formula="sum over dimensions of the norm of f over tokens",
        source=_MC_SUITE,
        score=mc_ean,
        groups=("dimensions",),
        mass=True,
    ),
    "mc_eae": Criterion(
        formula="sum over dimensions of log std of f", source=_MC_SUITE, score=mc_eae, groups=("dimensions",)
    ),
    "vocabulary_coverage": Criterion(
        formula="distinct token ids routed to it, divided by all",
        source=_MC_SUITE,
        score=vocabulary_coverage,
        groups=("vocabulary",),
    ),
    "co_selection": Criterion(
        formula="round in which it goes if the pair least often chosen together loses its less used expert",
        source=_MC_SUITE,
        score=co_selection,
        groups=("coselection",),
        opposite=co_selection_most,
    ),
    "shared_tokens": Criterion(
        formula="sum over other experts of the distinct token ids routed to both",
        source=_MC_SUITE,
        score=shared_tokens,
        drops="highest",
        groups=("vocabulary",),
    ),
    "egn": Criterion(
        formula="sum over dimensions of the norm of the gradient at f over tokens",
        source=_MC_SUITE,
        score=egn,
        groups=("gradients",),
        mass=True,
    ),
    "ege": Criterion(
        formula="sum over dimensions of log std of the gradient at f",
        source=_MC_SUITE,
        score=ege,
        groups=("gradients",),
    ),
    "expert_weight_norm": Criterion(
        formula="norm of its weights", source=_MC_SUITE, score=expert_weight_norm, groups=("weights",)
    ),
    "expert_similarity": Criterion(
        formula="sum of the cosines of its weights with the other experts'",
        source=_MC_SUITE,
        score=expert_similarity,
        drops="highest",
        groups=("weights",),
    ),
    "router_weight_norm": Criterion(
        formula="norm of its row of the router",
        source=_MC_SUITE,
        score=router_weight_norm,
        drops="highest",
        groups=("weights",),
    ),
    "stable_rank": Criterion(
        formula="sum of squared singular values over the largest one squared, mean of the matrices",
        source=_MC_SUITE,
        score=stable_rank,
        drops="highest",
        groups=("weights",),
    ),
    "random": Criterion(formula="uniform, from the seed", source="baseline", score=uniform),
}


def score(name: str, evidence: Evidence, *, reverse: bool = False) -> FloatArray:
    """Return the scores of the experts (layers, experts); the higher, the sooner kept.

    Args:
        name: of the criterion.
        evidence: what is known of the experts.
        reverse: whether to drop the other end; arXiv 2504.05586 tries both of every criterion.

    Raises:
        UsageError: if there is no such criterion, or the evidence lacks a group that it needs.
    """
    if name not in CRITERIA:
        raise UsageError(f"`criterion` must be one of {', '.join(CRITERIA)}, but is {name} instead.")
    criterion = CRITERIA[name]
    keeps_high = criterion.drops == "lowest"
    if reverse and criterion.opposite is not None:
        scores = criterion.opposite(evidence)
    else:
        scores, keeps_high = criterion.score(evidence), keeps_high != reverse
    return scores if keeps_high else np.negative(scores)


def distinct_criteria() -> tuple[str, ...]:
    """Return the names of the criteria without those that rank as another does."""
    return tuple(name for name, criterion in CRITERIA.items() if criterion.same_as is None)


def describe_criteria() -> list[tuple[str, str, str, str, str, str]]:
    """Return a row for each criterion: name, end it drops, groups it needs, formula, source, criterion it ranks as."""
    return [
        (name, each.drops, ", ".join(each.groups) or "core", each.formula, each.source, each.same_as or "")
        for name, each in CRITERIA.items()
    ]
