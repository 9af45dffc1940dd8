"""`Evaluation`: a folder of results, which configurations in which directions, read a direction at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json, write_json
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.results import RESULT_FILES, DirectionResult
from nllb_prune.evaluation.scores.metrics import IntArray, Metric
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet

_FORMAT, _VERSION, _NAME = "nllb-prune/evaluation-index", 1, "evaluation.json"


def result_path(folder: Path, configuration: str, direction: str) -> Path:
    """Return where the result of a direction is."""
    return folder / configuration / f"{direction}.{RESULT_FILES.extension}"


def plan_facts(masks: MaskSet | None) -> dict[str, Any]:
    """Return how masks were planned, as far as reports compare it; nothing for a full model."""
    if masks is None:
        return {}
    budget = masks.plan.get("budget", {})
    return {
        "granularity": masks.granularity,
        "signature": masks.signature,
        "criterion": masks.plan.get("criterion"),
        "ratio": budget.get("ratio"),
        "kept_experts": masks.plan.get("kept_experts"),
        "counts": masks.plan.get("counts"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was evaluated, and where the results are."""

    folder: Path
    model: str
    beams: int
    directions: tuple[Direction, ...]
    digests: Mapping[str, Mapping[str, str]]
    """Of the settings of each result, by configuration and direction."""
    plans: Mapping[str, Mapping[str, Any]]
    """How the masks of each configuration were planned."""
    backend: str | None = None
    """Library and version whose modules the model was made of; `None` for transformers."""

    @property
    def configurations(self) -> tuple[str, ...]:
        """Names, in the order they were given."""
        return tuple(self.digests)

    def result(self, configuration: str, direction: Direction) -> DirectionResult:
        """Read one result.

        Raises:
            UsageError: if it was not evaluated, or its file is missing, broken, or made anew with other settings since.
        """
        digest_then = self._digest(configuration, direction)
        path = result_path(self.folder, configuration, "-".join(direction))
        try:
            result, header = RESULT_FILES.unpack(path.read_bytes())
            digest = header["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"`{path}` must be a result, but cannot be read ({error!r}). Evaluate again.") from None
        if digest != digest_then:
            raise UsageError(f"`{path}` must be of this evaluation, but was made with other settings. Evaluate again.")
        if (result.configuration, result.source, result.target) != (configuration, *direction):
            raise UsageError(f"`{path}` must be what its name says, but is of another direction. Evaluate again.")
        return result

    def _digest(self, configuration: str, direction: Direction) -> str:
        if configuration not in self.digests:
            known = ", ".join(self.configurations)
            raise UsageError(f"`configuration` must be one of {known}, but is {configuration} instead.")
        if direction not in self.directions:
            known = ", ".join(map("-".join, self.directions))
            raise UsageError(f"`direction` must be one of {known}, but is {'-'.join(direction)} instead.")
        return self.digests[configuration]["-".join(direction)]

    def results(self, direction: Direction) -> dict[str, DirectionResult]:
        """Read the results of every configuration in a direction."""
        return {name: self.result(name, direction) for name in self.configurations}

    def statistics(self, configuration: str, metric: Metric) -> dict[str, IntArray]:
        """Return the statistics of a metric `(sentences, columns)` in every direction, as `significance` takes them."""
        found = self.of_configuration(configuration)
        return {result.direction: result.scores[metric].statistics for result in found}

    def of_configuration(self, name: str) -> Iterator[DirectionResult]:
        """Read the results of a configuration, one at a time."""
        return (self.result(name, direction) for direction in self.directions)

    def joined(self, other: Evaluation) -> Evaluation:
        """Return both, `self` first, of the same directions in one folder.

        Raises:
            UsageError: if they are of other directions, folders or searches.
        """
        if (self.folder, self.beams, set(self.directions)) != (other.folder, other.beams, set(other.directions)):
            raise UsageError("`other` must be of the same folder, directions and beams, but is not.")
        return replace(self, digests={**self.digests, **other.digests}, plans={**self.plans, **other.plans})

    def save(self) -> None:
        """Write `evaluation.json` beside the results."""
        content = {**asdict(self), "format": _FORMAT, "version": _VERSION, "configurations": self.configurations}
        del content["folder"]
        write_json(self.folder / _NAME, content)

    @classmethod
    def open(cls, folder: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            UsageError: if it is missing or something else.
        """
        path = folder / _NAME
        content = read_json(path, what="the index of an evaluation")
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
            raise UsageError(f"`{path}` must be the index of an evaluation (`{_FORMAT}` {_VERSION}), but is not.")
        try:
            return cls(
                folder=folder,
                model=content["model"],
                beams=content["beams"],
                directions=tuple((source, target) for source, target in content["directions"]),
                digests={name: dict(content["digests"][name]) for name in content["configurations"]},
                plans={name: dict(content["plans"][name]) for name in content["configurations"]},
                backend=content.get("backend"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"`{path}` must be the index of an evaluation, but is damaged ({error!r}).") from None
