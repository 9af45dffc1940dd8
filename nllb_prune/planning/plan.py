"""From statistics to masks: score, share the budget, select."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.masks import MaskSet
from nllb_prune.planning.counts import Overrides
from nllb_prune.planning.members import Aggregation
from nllb_prune.planning.planner import Planner
from nllb_prune.planning.settings import BudgetFor, PlanGranularity, Settings

__all__ = ["Aggregation", "plan"]


def plan(
    statistics: ExpertStatistics,
    *,
    kept: float | int | None = None,
    pruned: float | None = None,
    memory: int | None = None,
    counts: Mapping[str, int | Sequence[int]] | None = None,
    dtype: str = "bfloat16",
    model_name: str | None = None,
    criterion: str = "importance",
    reverse: bool = False,
    ratio: str | Mapping[str, float] | None = None,
    scope: str = "layer",
    reference: str = "eng_Latn",
    granularity: PlanGranularity = "language",
    languages: Iterable[str] | None = None,
    budget_for: BudgetFor = "each",
    aggregation: Aggregation = "pooled",
    minimum: int | None = None,
    overrides: Overrides | None = None,
    protect_end: int = 0,
    protect_super: bool = False,
    within: MaskSet | None = None,
    seed: int = 0,
) -> MaskSet:
    """Choose the experts that each language keeps.

    Args:
        statistics: of the model to prune.
        kept: a fraction of all experts (float) or their number (int). One of `kept`, `pruned`, `memory` and `counts`
            is the budget.
        pruned: a fraction of all experts that goes.
        memory: bytes that the weights of any direction must fit in: dense part, routers (float32) and kept experts.
        counts: experts of each layer, by stack: one number, or one a layer.
        dtype: of the weights, for `memory`.
        model_name: what to call the model; by default the name it was calibrated by, or its family.
        criterion: one of `CRITERIA`.
        reverse: whether to drop what the criterion would keep first.
        ratio: weight of each stack in the total, by name, or as encoder:decoder; 3:1 by default. A scope over the whole
            model needs it only for languages that have statistics in one stack.
        scope: one of `SCOPES`, how the budget is shared among layers. Those over the whole model share it among the
            encoder's layers for a language as the source and the decoder's for it as the target, together.
        reference: the language that the scope `divergence` compares with.
        granularity: a mask per language, per direction (`pair`), one for all (`global`) or one for `languages`
            (`union`), which is found under each of them.
        languages: only these; all by default.
        budget_for: whether `union` joins the masks that each language has at the budget (`each`), or is itself held to
            it (`union`): the union of the best k of each language, for the largest k that fits, and exactly filled.
        aggregation: how directions make a language: add the sums (`pooled`), or average the shares of each direction
            (`mean-of-directions`, as in arXiv 2212.09811; needs statistics of pairs).
        minimum: fewest experts of a layer; by default the model's top-k, and 4 for scopes that tell layers apart.
        overrides: experts of each layer by language and stack, instead of what the budget gives that mask.
        protect_end: so many experts of each decoder layer that matter most where the sentence ends are kept.
        protect_super: whether super experts (arXiv 2510.13999) are kept; needs statistics with the group `norms`.
        within: only experts that these masks keep can be kept.
        seed: of the criterion `random`.

    Raises:
        UsageError: if something asked for does not exist, does not fit the statistics or cannot be kept.
    """
    settings = Settings(
        kept=kept,
        pruned=pruned,
        memory=memory,
        counts=counts,
        dtype=dtype,
        ratio=ratio,
        minimum=minimum,
        overrides=overrides or {},
        criterion=criterion,
        reverse=reverse,
        seed=seed,
        scope=scope,
        reference=reference,
        granularity=granularity,
        languages=None if languages is None else tuple(dict.fromkeys(languages)),
        budget_for=budget_for,
        aggregation=aggregation,
        protect_end=protect_end,
        protect_super=protect_super,
        within=within,
    )
    masks = Planner(statistics, settings).masks()
    return masks if model_name is None else replace(masks, model_name=model_name)
