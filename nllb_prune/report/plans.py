"""How the masks of a configuration were planned, from the summary or from the masks themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nllb_prune.evaluation.summary.summary import ConfigurationSummary
from nllb_prune.masks import MaskSet

_USUAL = "pooled"
STACKS = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Planned:
    """What two configurations must agree in to be points of one curve, and what they may differ in."""

    granularity: str
    criterion: str
    ratio: str
    """Encoder : decoder as it was asked for; empty if it was not."""
    aggregation: str
    """Of directions to languages; empty for the usual way, which summaries do not tell."""
    counts: Mapping[str, tuple[int, ...]]
    """Experts of each layer by stack; empty where languages differ."""
    signature: str

    @property
    def title(self) -> str:
        """Granularity, criterion and ratio in words."""
        one = "one for all" if self.granularity == "global" else f"per {self.granularity}"
        return ", ".join(each for each in (one, self.criterion, self.ratio) if each)


def planned(configuration: ConfigurationSummary, masks: MaskSet | None) -> Planned | None:
    """Return how a configuration was planned; nothing for full and dense models and for masks from elsewhere."""
    own = {} if masks is None else {**masks.plan, "granularity": masks.granularity, "signature": masks.signature}
    plan = {**own, **configuration.plan}
    if not plan.get("granularity"):
        return None
    return Planned(
        granularity=str(plan["granularity"]),
        criterion=str(plan.get("criterion") or ""),
        ratio=ratio_of(plan),
        aggregation=str(plan.get("aggregation") or "").removeprefix(_USUAL),
        counts=_counts(plan.get("counts") or {}),
        signature=str(plan.get("signature") or ""),
    )


def _counts(counts: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Keep lists by stack; where languages differ there is a table by language instead."""
    if set(counts) != set(STACKS) or not all(isinstance(layers, list | tuple) for layers in counts.values()):
        return {}
    return {stack: tuple(map(int, counts[stack])) for stack in STACKS}


def ratio_of(plan: Mapping[str, Any]) -> str:
    """Return the ratio of a plan such as `3:1`; nothing if it was not planned with one."""
    ratio = plan.get("ratio") or (plan.get("budget") or {}).get("ratio") or {}
    if not isinstance(ratio, Mapping):
        return str(ratio)
    return ":".join(f"{ratio[stack]:g}" for stack in STACKS if stack in ratio)


def per_layer(counts: Sequence[int]) -> str:
    """Return the experts of a layer, as a range if layers differ."""
    return str(min(counts)) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"
