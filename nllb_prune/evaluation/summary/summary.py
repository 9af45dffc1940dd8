"""`Summary`: what an evaluation says of each configuration, in numbers with intervals and tests, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nllb_prune._files import read_json, write_json
from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.groups import ALL

_FORMAT, _VERSION = "nllb-prune/evaluation", 2

Outcome = Literal["accepted", "accepted with warnings", "rejected"]


@dataclass(frozen=True, slots=True)
class Change:
    """A difference to the baseline of the same sentences."""

    value: float
    """The configuration's figure minus the baseline's."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    p: float
    """Two-sided: how often chance alone gives a difference as large."""
    q: float
    """p adjusted for all tests of its kind (Benjamini and Hochberg 1995)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95 % interval, and its change against the baseline."""

    value: float
    low: float
    high: float
    change: Change | None = None
    """None for the baseline, and where nothing is compared."""


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A configuration over a group of directions; figures are unweighted means over directions."""

    name: str
    directions: int
    figures: Mapping[str, Figure]
    """By name: metrics (`chrf`, `bleu`, `spbleu`), those of `surface.MEASURES`, `mean_length_ratio`,
    `mean_log_probability`, and rates of detectors by their names: `any` is of all but `unlikely`; `off-target raw` and
    `off-target of references` are what `off-target` is the difference of; `detached raw` is by the reference alone."""


@dataclass(frozen=True, slots=True)
class DirectionSummary:
    """A configuration in one direction."""

    source: str
    target: str
    kept: float
    figures: Mapping[str, float]
    """By the names of groups' figures, and `high_length_ratio`: the 99th percentile of sentences."""
    changes: Mapping[str, Change]
    """Of metrics and `length_ratio`; q is over all directions of the configuration."""
    fidelity: Mapping[str, float] | None = None

    @property
    def direction(self) -> str:
        """`source-target`."""
        return f"{self.source}-{self.target}"


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence that the configuration translates worse than the baseline."""

    source: str
    target: str
    line: int
    """From 1."""
    text: str
    reference: str
    baseline: str
    """Its output."""
    output: str
    chrf: float
    """chrF++ of the sentence."""
    baseline_chrf: float
    flagged: tuple[str, ...]
    """Detectors that flag this output and not the baseline's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a configuration is good enough, and what speaks against it."""

    outcome: Outcome
    reasons: tuple[str, ...]
    """One line for each limit that is passed, the graver first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationSummary:
    """One configuration."""

    name: str
    baseline: str | None
    """What it is compared with; None for the baseline itself."""
    kept: float
    """Mean over directions of the share of experts in use."""
    weight_bytes: int
    """Largest direction's weights."""
    plan: Mapping[str, Any]
    """How its masks were planned: `granularity`, `criterion`, `ratio`, `signature`, `kept_experts`, `counts`."""
    groups: tuple[GroupSummary, ...]
    directions: tuple[DirectionSummary, ...]
    fidelity: Mapping[str, float] | None
    """Over all sentences of all directions."""
    examples: tuple[Example, ...]
    verdict: Verdict | None

    def group(self, name: str = ALL) -> GroupSummary:
        """Return a group of directions.

        Raises:
            UsageError: if the evaluation has no such group.
        """
        for each in self.groups:
            if each.name == name:
                return each
        raise UsageError(f"`group` must be one of {', '.join(g.name for g in self.groups)}, but is {name} instead.")

    def figure(self, name: str, group: str = ALL) -> Figure:
        """Return a figure of a group."""
        return self.group(group).figures[name]

    def worst(self, name: str = "chrf") -> DirectionSummary | None:
        """Return the direction that loses most; none for the baseline."""
        changed = [d for d in self.directions if name in d.changes]
        return min(changed, key=lambda d: (d.changes[name].value, d.direction), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Every configuration, and how its numbers were made."""

    model: str
    configurations: tuple[ConfigurationSummary, ...]
    baseline: str
    sentences: int
    """Of each direction."""
    beams: int
    test: Mapping[str, Any]
    """`name` (bootstrap or randomisation), `resamples`, `seed`."""
    signatures: Mapping[str, tuple[str, ...]]
    """Of metrics (sacrebleu's; BLEU has one for each tokenizer) and of detectors."""
    signatures_by_target: Mapping[str, Mapping[str, str]]
    """Of each metric by target language: which of its signatures a direction has."""
    limits: Mapping[str, tuple[float, float]]
    """Beyond which a configuration is warned of, and rejected, by name."""
    versions: Mapping[str, str]

    def __getitem__(self, name: str) -> ConfigurationSummary:
        for configuration in self.configurations:
            if configuration.name == name:
                return configuration
        known = ", ".join(c.name for c in self.configurations)
        raise UsageError(f"`configuration` must be one of {known}, but is {name} instead.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that were scored, chrF++ first."""
        figures = self.configurations[0].group().figures
        return tuple(name for name in ("chrf", "bleu", "spbleu") if name in figures)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Detectors whose rates are among the figures."""
        figures = self.configurations[0].group().figures
        return tuple(name for name in self.signatures if name in figures and name not in self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"format": _FORMAT, "version": _VERSION, "tool": f"nllb-prune {__version__}", **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Summary:
        """Read a file of `save`.

        Raises:
            UsageError: if it is missing or something else.
        """
        content = read_json(path, what="the summary of an evaluation")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise UsageError(f"`{path}` must be the summary of an evaluation (`{_FORMAT}`), but is not.")
        if content.get("version") != _VERSION:
            raise UsageError(
                f"`{path}` must have format version {_VERSION}, but has {content.get('version')} instead. "
                "Evaluate again: results that fit are kept."
            )
        try:
            return _summary(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"`{path}` must be the summary of an evaluation, but is damaged ({error!r}).") from None


def _summary(content: Mapping[str, Any]) -> Summary:
    return Summary(
        model=content["model"],
        configurations=tuple(_configuration(each) for each in content["configurations"]),
        baseline=content["baseline"],
        sentences=content["sentences"],
        beams=content["beams"],
        test=content["test"],
        signatures={name: tuple(found) for name, found in content["signatures"].items()},
        signatures_by_target=content["signatures_by_target"],
        limits={name: (warn, reject) for name, (warn, reject) in content["limits"].items()},
        versions=content["versions"],
    )


def _configuration(content: Mapping[str, Any]) -> ConfigurationSummary:
    verdict = content["verdict"]
    return ConfigurationSummary(
        name=content["name"],
        baseline=content["baseline"],
        kept=content["kept"],
        weight_bytes=content["weight_bytes"],
        plan=content["plan"],
        groups=tuple(_group(each) for each in content["groups"]),
        directions=tuple(_direction(each) for each in content["directions"]),
        fidelity=content["fidelity"],
        examples=tuple(Example(**{**each, "flagged": tuple(each["flagged"])}) for each in content["examples"]),
        verdict=None if verdict is None else Verdict(verdict["outcome"], tuple(verdict["reasons"])),
    )


def _group(content: Mapping[str, Any]) -> GroupSummary:
    figures = {name: _figure(each) for name, each in content["figures"].items()}
    return GroupSummary(content["name"], content["directions"], figures)


def _figure(content: Mapping[str, Any]) -> Figure:
    change = content["change"]
    return Figure(content["value"], content["low"], content["high"], None if change is None else Change(**change))


def _direction(content: Mapping[str, Any]) -> DirectionSummary:
    changes = {name: Change(**each) for name, each in content["changes"].items()}
    return DirectionSummary(**{**content, "changes": changes})
