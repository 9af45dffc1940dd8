"""`Settings`: what was asked of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nllb_prune.masks import MaskGranularity, MaskSet
from nllb_prune.planning.budget import parse_ratio
from nllb_prune.planning.counts import Overrides
from nllb_prune.planning.members import Aggregation
from nllb_prune.planning.scopes import Scope, scope_named

PlanGranularity = Literal["language", "pair", "global", "union"]
BudgetFor = Literal["each", "union"]

BUDGETS = ("kept", "pruned", "memory", "counts")
"""Names of the settings of which one is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of `plan`, where they are explained."""

    kept: float | int | None = None
    pruned: float | None = None
    memory: int | None = None
    counts: Mapping[str, int | Sequence[int]] | None = None
    dtype: str = "bfloat16"
    ratio: str | Mapping[str, float] | None = None
    minimum: int | None = None
    overrides: Overrides = field(default_factory=dict)
    criterion: str = "importance"
    reverse: bool = False
    seed: int = 0
    scope: str = "layer"
    reference: str = "eng_Latn"
    granularity: PlanGranularity = "language"
    languages: tuple[str, ...] | None = None
    budget_for: BudgetFor = "each"
    aggregation: Aggregation = "pooled"
    protect_end: int = 0
    protect_super: bool = False
    within: MaskSet | None = None

    @property
    def sharing(self) -> Scope:
        """The scope."""
        return scope_named(self.scope)

    @property
    def stack_weights(self) -> Mapping[str, float] | None:
        """The ratio as weights by stack."""
        return parse_ratio(self.ratio) if isinstance(self.ratio, str) else self.ratio

    @property
    def shared_budget(self) -> bool:
        """Whether one budget is for the union of languages."""
        return self.granularity == "union" and self.budget_for == "union"

    @property
    def mask_granularity(self) -> MaskGranularity:
        """What masks are keyed by; those of a union by each of its languages, as they are made for no other."""
        return "language" if self.granularity == "union" else self.granularity

    @property
    def by_side(self) -> bool:
        """Whether a direction takes the masks of two languages, one a side."""
        return self.granularity == "language"

    def record(self, *, weights: Mapping[str, float], minimum: int) -> dict[str, Any]:
        """Return the settings as JSON values; what has its default is left out, but for the most common.

        Args:
            weights: the ratio, resolved.
            minimum: the minimum, resolved.
        """
        chosen = {
            "scope": (self.scope, "layer"),
            "reverse": (self.reverse, False),
            "overrides": ({name: dict(each) for name, each in self.overrides.items()}, {}),
            "languages": (None if self.languages is None else sorted(self.languages), None),
            "within": (None if self.within is None else self.within.signature, None),
        }
        record: dict[str, Any] = {"criterion": self.criterion, "aggregation": self.aggregation}
        record |= {name: value for name, (value, default) in chosen.items() if value != default}
        record |= {"seed": self.seed} if self.criterion == "random" else {}
        record |= {"reference": self.reference} if self.scope == "divergence" else {}
        record |= {"union": {"budget_for": self.budget_for}} if self.granularity == "union" else {}
        return {**record, "budget": self._budget(weights) | {"minimum": minimum}}

    def _budget(self, weights: Mapping[str, float]) -> dict[str, Any]:
        budget: dict[str, Any] = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        unused = self.counts is not None or (self.ratio is None and self.sharing.whole_model)
        return budget if unused else {**budget, "ratio": dict(weights)}


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Return the settings that arguments of `plan` make."""
    languages, overrides = options.get("languages"), options.get("overrides")
    chosen = {name: value for name, value in options.items() if name not in ("languages", "overrides")}
    return Settings(
        **chosen, languages=None if languages is None else tuple(dict.fromkeys(languages)), overrides=overrides or {}
    )
