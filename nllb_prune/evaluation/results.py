"""`DirectionResult`: the translations of one configuration in one direction and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nllb_prune.evaluation.overgeneration import Overgeneration
from nllb_prune.evaluation.scores import DirectionScores


@dataclass(frozen=True, slots=True, eq=False)
class DirectionResult:
    """One configuration in one direction."""

    configuration: str
    source: str
    target: str
    kept: float
    """Share of the experts in use; 1 for a full or a dense model."""
    hypotheses: tuple[str, ...]
    scores: DirectionScores
    overgeneration: Overgeneration

    @property
    def direction(self) -> str:
        """`source-target`."""
        return f"{self.source}-{self.target}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "configuration": self.configuration,
            "source": self.source,
            "target": self.target,
            "kept": self.kept,
            "hypotheses": list(self.hypotheses),
            "scores": self.scores.to_json(),
            "overgeneration": self.overgeneration.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DirectionResult:
        """Rebuild from `to_json`."""
        return cls(
            content["configuration"],
            content["source"],
            content["target"],
            content["kept"],
            tuple(content["hypotheses"]),
            DirectionScores.from_json(content["scores"]),
            Overgeneration.from_json(content["overgeneration"]),
        )
