"""The plans that are compared at each budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nllb_prune import ExpertStatistics, MaskSet, plan
from nllb_prune.evaluation.fidelity.held_out import HeldOut
from nllb_prune.languages import Direction, english_and_ring
from nllb_prune.planning.measured import AskedReserve, Decisions, plan_measured

BUDGETS = (0.5, 0.25, 0.1875, 0.125)
"""Shares of the experts that stay."""
BY_LANGUAGE = (0.25, 0.1875)
"""Budgets at which searches by language are tried too."""
TO_PASS = (0.5, 0.25)
"""Budgets at which the guard is given a reserve that hardly ends, if masks fail."""
UNBOUNDED = AskedReserve(4.0)
"""That reserve, to see what passing takes."""
OTHERS = 12
"""Directions without English that are scored, beside all with it."""
PROTECTED = 2
"""Experts of each decoder layer that `--protect-end` keeps."""

Told = Callable[[str], None]


@dataclass(slots=True)
class Remembering:
    """A measure that answers a question it was asked before from memory, as plans share most of their searches."""

    held_out: HeldOut
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those of the measure."""
        return self.held_out.directions

    @property
    def signature(self) -> Any:
        """That of the measure."""
        return self.held_out.signature

    def losses(self, masks: MaskSet, directions: Sequence[Direction]) -> Any:
        """Ask for losses."""
        return self._asked("losses", masks, directions)

    def translations(self, masks: MaskSet, directions: Sequence[Direction]) -> Any:
        """Ask for translations."""
        return self._asked("translations", masks, directions)

    def _asked(self, what: str, masks: MaskSet, directions: Sequence[Direction]) -> Any:
        found = {}
        for direction in directions:
            key = json.dumps([what, direction, masks.direction(*direction)])
            if key not in self.known:
                self.known[key] = getattr(self.held_out, what)(masks, [direction])[direction]
            found[direction] = self.known[key]
        return found


def size_of(masks: MaskSet) -> int:
    """Return how many experts a direction that is scored keeps on average."""
    scored = english_and_ring(masks.languages(), others=OTHERS)
    return round(sum(masks.kept(*direction) for direction in scored) / len(scored))


def plans_at(kept: float, statistics: ExpertStatistics, measure: Remembering, *, told: Told) -> dict[str, MaskSet]:
    """Return every plan of a budget by name."""

    def measured(ratio: str | None = None, **decisions: Any) -> MaskSet:
        chosen = Decisions(**decisions) if ratio else Decisions(ratio="auto", **decisions)
        return asked(chosen, **({"ratio": ratio} if ratio else {}))

    def asked(decisions: Decisions, **options: Any) -> MaskSet:
        told(f"planning {kept:.2%}: {options}, ratio {decisions.ratio}, layers {decisions.layers}, {decisions.guard=}")
        return plan_measured(statistics, measure, decisions=decisions, kept=kept, **options)

    found = {
        "3:1": plan(statistics, kept=kept, ratio="3:1"),
        "3:1 + protect-end": plan(statistics, kept=kept, ratio="3:1", protect_end=PROTECTED),
        "3:1 + auto layers": measured("3:1", layers="auto"),
        "3:1 + guard": measured("3:1", guard=True),
        "1:1": plan(statistics, kept=kept, ratio="1:1"),
        "auto ratio": measured(),
        "auto ratio + guard": measured(guard=True),
        "auto ratio + auto layers": measured(layers="auto"),
        "auto ratio + auto layers + guard": measured(layers="auto", guard=True),
    }
    if kept in TO_PASS and found["auto ratio + auto layers + guard"].plan["guard"]["failed"]:
        found["auto ratio + auto layers + guard to pass"] = measured(layers="auto", guard=True, reserve=UNBOUNDED)
    weights = found["auto ratio"].plan["budget"]["ratio"]
    found["auto ratio + divergence"] = plan(
        statistics, kept=kept, ratio=weights, scope="divergence", minimum=statistics.spec.top_k
    )
    for name in [name for name in found if "guard" in name]:
        grown = size_of(found[name])
        if grown != size_of(found["3:1"]):
            found[f"3:1 as large as {name}"] = plan(statistics, kept=grown, ratio="3:1")
    if kept in BY_LANGUAGE:
        found["ratio by language"] = asked(Decisions(ratio="auto-per-language"))
        found["auto ratio + layers by language"] = measured(layers="auto-per-language")
    return found
