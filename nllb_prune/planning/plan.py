"""From statistics to masks: aggregate, score, allocate, select."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.masks import GLOBAL_KEY, ExpertMask, MaskGranularity, MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.budget import Allocation, Budget, allocate, parse_ratio, resolve_ratio
from nllb_prune.planning.criteria import Shares
from nllb_prune.planning.criteria import criterion as criterion_named
from nllb_prune.planning.selection import top_per_layer

Aggregation = Literal["pooled", "mean-of-directions"]


def plan(
    statistics: ExpertStatistics,
    *,
    kept: float | int,
    model_name: str | None = None,
    criterion: str = "importance",
    ratio: str | Mapping[str, float] | None = None,
    granularity: MaskGranularity = "language",
    aggregation: Aggregation = "pooled",
    minimum: int | None = None,
    seed: int = 0,
) -> MaskSet:
    """Choose the experts that each language keeps.

    Args:
        statistics: of the model to prune.
        kept: a fraction of all experts (float) or their number (int).
        model_name: what to call the model; by default the name it was calibrated by, or its family.
        criterion: one of `CRITERIA`.
        ratio: weight of each stack in the total, by name, or as encoder:decoder; 3:1 by default.
        granularity: a mask per language, per direction (`pair`) or one for all (`global`).
        aggregation: how directions make a language: add the sums (`pooled`), or average the shares of each direction
            (`mean-of-directions`, as in arXiv 2212.09811; needs statistics of pairs).
        minimum: fewest experts of a layer; by default the model's top-k.
        seed: of the criterion `random`.

    Raises:
        UsageError: if something asked for does not exist, does not fit the statistics or cannot be kept.
    """
    _check_choices(statistics, granularity=granularity, aggregation=aggregation)
    spec = statistics.spec
    weights = resolve_ratio(parse_ratio(ratio) if isinstance(ratio, str) else ratio, spec.stacks)
    budget = Budget(kept, weights, spec.top_k if minimum is None else minimum)
    if budget.minimum < spec.top_k:
        raise UsageError(f"`minimum` must be {spec.top_k} or more, the model's top-k, but is {minimum} instead.")
    allocation = allocate(spec.stacks, budget)

    def select(stack: Stack, key: str, shares: Shares) -> ExpertMask:
        score = criterion_named(criterion, seed=seed, stack=stack.name, key=key)
        return top_per_layer(score(shares), allocation.counts[stack.name])

    shares = {s: _shares(statistics, s, granularity=granularity, aggregation=aggregation) for s in spec.stacks}
    return MaskSet(
        model_name=model_name or str(statistics.signature.get("model", spec.family)),
        fingerprint=statistics.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity=granularity,
        masks={s.name: {key: select(s, key, each) for key, each in by_key.items()} for s, by_key in shares.items()},
        plan={
            "criterion": criterion,
            **({"seed": seed} if criterion == "random" else {}),
            "aggregation": aggregation,
            "budget": {"kept": kept, "ratio": weights, "minimum": budget.minimum},
            **_allocated(allocation),
            "statistics": _described(statistics),
        },
    )


def _check_choices(statistics: ExpertStatistics, *, granularity: str, aggregation: str) -> None:
    for name, value, choices in (
        ("granularity", granularity, get_args(MaskGranularity)),
        ("aggregation", aggregation, get_args(Aggregation)),
    ):
        if value not in choices:
            raise UsageError(f"`{name}` must be one of {', '.join(choices)}, but is {value} instead.")
    needs_pairs = granularity == "pair" or aggregation == "mean-of-directions"
    if needs_pairs and statistics.granularity != "pair":
        what = "a mask per pair" if granularity == "pair" else "mean-of-directions"
        raise UsageError(
            f"`statistics` must be of pairs for {what}, but are of languages instead. Calibrate with granularity pair."
        )


def _shares(
    statistics: ExpertStatistics, stack: Stack, *, granularity: MaskGranularity, aggregation: Aggregation
) -> dict[str, Shares]:
    """Return what the criterion works on for each mask of a stack."""
    top_k = statistics.spec.top_k
    shares = {}
    for mask_key, keys in _members(statistics, stack.name, granularity).items():
        groups = [[key] for key in keys] if aggregation == "mean-of-directions" else [keys]
        tables = [statistics.pooled(stack.name, group) for group in groups]
        if not tables or not all(table["tokens"][0] for table in tables):
            raise UsageError(f"`statistics` must have tokens for {stack.name}/{mask_key}, but have none.")
        shares[mask_key] = Shares.average([Shares.of(table, top_k=top_k) for table in tables])
    return shares


def _members(statistics: ExpertStatistics, stack: str, granularity: MaskGranularity) -> dict[str, tuple[str, ...]]:
    """Return the keys of the statistics that make each mask."""
    keys = statistics.keys(stack)
    if granularity == "global":
        return {GLOBAL_KEY: keys}
    if granularity == "language" and statistics.granularity == "pair":
        return statistics.directions(stack)
    return {key: (key,) for key in keys}


def _allocated(allocation: Allocation) -> dict[str, Any]:
    counts = {stack: list(layers) for stack, layers in allocation.counts.items()}
    return {"counts": counts, "kept_experts": allocation.total, "notes": list(allocation.notes)}


def _described(statistics: ExpertStatistics) -> dict[str, Any]:
    return {
        "digest": statistics.digest(),
        "granularity": statistics.granularity,
        "items": len(statistics.items),
        "signature": dict(statistics.signature),
    }
