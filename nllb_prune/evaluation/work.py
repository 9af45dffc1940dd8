"""The work of an evaluation: a result for every configuration in every direction, and what each depends on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nllb_prune._version import __version__
from nllb_prune.backends import TRANSFORMERS
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.evaluation import Evaluation, plan_facts
from nllb_prune.evaluation.measuring import Measuring
from nllb_prune.generation.decode import POSITIONS, ROWS
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet, size
from nllb_prune.model.loading import ModelFacts
from nllb_prune.planning.memory import weight_bytes
from nllb_prune.worklist import settings_digest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+:%-]*")


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One configuration in one direction."""

    configuration: str
    source: str
    target: str

    @property
    def direction(self) -> Direction:
        """Source and target."""
        return self.source, self.target

    @property
    def id(self) -> str:
        """Names the result file."""
        return f"{self.configuration}/{self.source}-{self.target}"


@dataclass(frozen=True, slots=True)
class Search:
    """How outputs are searched for."""

    beams: int = 1
    rows: int = ROWS
    positions: int = POSITIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationWork:
    """What is to be done, without the model that does it."""

    facts: ModelFacts
    text: ParallelText
    directions: tuple[Direction, ...]
    configurations: Mapping[str, MaskSet | None]
    """Masks by name; None is the full (or a dense) model."""
    search: Search
    measuring: Measuring
    folder: Path
    _signatures: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of the masks of each configuration: hashing those of thousands of directions takes long."""

    def __post_init__(self) -> None:
        if not self.directions:
            raise UsageError("`directions` must name one direction or more, but are none.")
        for code in dict.fromkeys(code for direction in self.directions for code in direction):
            if code not in self.text.languages:  # before the first translation
                known = ", ".join(self.text.languages)
                raise UsageError(f"`directions` must be of languages of the text, {known}, but one has {code} instead.")
        for name, masks in self.configurations.items():
            if not _NAME.fullmatch(name) or name.endswith(".json"):
                raise UsageError(
                    "`configurations` must be named with letters, digits, spaces and `._+:%-`, as they name folders, "
                    "and not end in .json, "
                    f"but one is {name!r} instead."
                )
            if masks is not None:
                masks.check_model(self.facts.spec)
                for direction in self.directions:
                    masks.direction(*direction)  # a language without a mask is refused before the first translation

    def items(self) -> list[EvaluationItem]:
        """Return the items: directions of one target after another, all configurations of a direction together."""
        ordered = sorted(self.directions, key=lambda direction: direction[::-1])
        return [EvaluationItem(name, *direction) for direction in ordered for name in self.configurations]

    def settings(self, item: EvaluationItem) -> dict[str, Any]:
        """Return what the result of an item depends on."""
        return self.translation_settings(item) | self.measuring.settings(item.direction)

    def translation_settings(self, item: EvaluationItem) -> dict[str, Any]:
        """Return what the outputs alone depend on."""
        return {
            "model": self.facts.identity,
            "masks": self._signature(item.configuration),
            "text": [self.text.digest(code) for code in item.direction],
            "beams": self.search.beams,
            "in_flight": [self.search.rows, self.search.positions],
            "dtype": self.facts.dtype,
            "versions": _versions(),
            "backend": self.facts.backend or TRANSFORMERS,
        }

    def _signature(self, configuration: str) -> str | None:
        if configuration not in self._signatures:
            masks = self.configurations[configuration]
            self._signatures[configuration] = None if masks is None else masks.signature
        return self._signatures[configuration]

    def weights(self, item: EvaluationItem) -> tuple[float, int]:
        """Return the share of the experts that an item uses, and the bytes of its weights."""
        spec, masks = self.facts.spec, self.configurations[item.configuration]
        assert spec.parameters is not None
        if masks is None:
            experts = {stack.name: stack.total for stack in spec.stacks}
            return 1.0, weight_bytes(spec.parameters, experts, self.facts.dtype)
        experts = {stack: size(mask) for stack, mask in masks.direction(*item.direction).items()}
        return masks.kept_fraction(*item.direction), weight_bytes(spec.parameters, experts, self.facts.dtype)

    def evaluation(self) -> Evaluation:
        """Return the index of the results, once all items are computed."""
        return Evaluation(
            folder=self.folder,
            model=self.facts.name,
            backend=self.facts.backend,
            beams=self.search.beams,
            directions=self.directions,
            digests={name: self._digests(name) for name in self.configurations},
            plans={name: plan_facts(masks) for name, masks in self.configurations.items()},
        )

    def _digests(self, name: str) -> dict[str, str]:
        items = [EvaluationItem(name, *direction) for direction in self.directions]
        return {"-".join(item.direction): settings_digest(self.settings(item)) for item in items}


@cache
def _versions() -> dict[str, str]:
    return {"nllb-prune": __version__, **{name: version(name) for name in ("torch", "transformers")}}


def in_order(directions: Sequence[Direction]) -> tuple[Direction, ...]:
    """Return each direction once."""
    return tuple(dict.fromkeys(directions))
