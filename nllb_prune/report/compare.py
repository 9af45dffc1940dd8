"""Two evaluations side by side, from their summaries alone: what differs in how they were made, and in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Figure, Summary
from nllb_prune.evaluation.summary.table import METRICS, UNLIKELY, detectors
from nllb_prune.report.json_report import without_nan
from nllb_prune.report.names import ANY, members, metric_name

_FORMAT, _VERSION = "nllb-prune/report-comparison", 1
_SURFACE = ("length_ratio", "over_2", "under_half", "repeat_rate_4")
_MOVED = 20
_SEARCH = ("model", "beams", "baseline")  # what may be what is compared; named, but no hindrance


@dataclass(frozen=True, slots=True)
class Notice:
    """Something in which the two evaluations were made differently."""

    what: str
    first: str
    second: str
    withheld: bool
    """Whether numbers are not subtracted because of it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class FigurePair:
    """A figure of a group of directions in both evaluations."""

    group: str
    name: str
    first: Figure
    second: Figure
    difference: Difference | None
    """None where the two are not comparable."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A direction in both evaluations."""

    direction: str
    first: float
    """chrF++."""
    second: float
    length_first: float
    length_second: float

    @property
    def difference(self) -> float:
        """Change of chrF++ from the first to the second."""
        return self.second - self.first


@dataclass(frozen=True, slots=True)
class ConfigurationPair:
    """A configuration in both evaluations."""

    name: str
    kept: tuple[float, float]
    weight_bytes: tuple[int, int]
    outcomes: tuple[str | None, str | None]
    figures: tuple[FigurePair, ...]
    moved: tuple[Moved, ...]
    """Directions by how much chrF++ moved, most first; none if chrF++ is not comparable or nothing moved."""

    def figure(self, name: str, group: str) -> FigurePair | None:
        """Return a pair of figures, if both evaluations have it."""
        return next((each for each in self.figures if (each.name, each.group) == (name, group)), None)


@dataclass(frozen=True, slots=True)
class EvaluationComparison:
    """Two evaluations."""

    names: tuple[str, str]
    notices: tuple[Notice, ...]
    configurations: tuple[ConfigurationPair, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Configurations that only one of them has."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        found: dict[str, Any] = without_nan(asdict(self))
        return {"format": _FORMAT, "version": _VERSION, "tool": f"nllb-prune {__version__}", **found}


def compare(first: Summary, second: Summary, *, names: tuple[str, str] = ("first", "second")) -> EvaluationComparison:
    """Compare configurations of the same name; the intervals of the two are taken as independent.

    Figures whose signatures differ are shown and not subtracted, and so is everything if the sentences are others.

    Raises:
        UsageError: if they share no configuration.
    """
    ours, theirs = ([c.name for c in each.configurations] for each in (first, second))
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UsageError(
            f"`--compare` must name evaluations that share a configuration, but the first has {', '.join(ours)} and "
            f"the second {', '.join(theirs)} instead."
        )
    notices = tuple(_notices(first, second))
    pairs = tuple(_pair(first[name], second[name], first, second) for name in shared)
    only = tuple(n for n in ours if n not in theirs), tuple(n for n in theirs if n not in ours)
    return EvaluationComparison(names, notices, pairs, only)


def difference(first: Figure, second: Figure) -> Difference:
    """Return second - first and its interval from those of the two, if they are independent.

    The ends are those of Zou and Donner (2008, Statistics in Medicine 27:1693-1702), for intervals that need not be
    symmetrical.
    """
    value = second.value - first.value
    low = value - hypot(second.value - second.low, first.high - first.value)
    high = value + hypot(second.high - second.value, first.value - first.low)
    return Difference(value, low, high)


def _notices(first: Summary, second: Summary) -> list[Notice]:
    found = [
        _notice("sentences", first.sentences, second.sentences, withheld=True),
        _directions(first, second),
        *(_signature(name, first, second) for name in dict.fromkeys([*first.signatures, *second.signatures])),
        *(_notice(what, getattr(first, what), getattr(second, what)) for what in _SEARCH),
        _notice("test", _listed(first.test), _listed(second.test)),
        _notice("versions", _listed(first.versions), _listed(second.versions)),
    ]
    return [each for each in found if each is not None]


def _notice(what: str, first: object, second: object, *, withheld: bool = False) -> Notice | None:
    """Return a notice if the two differ."""
    return None if first == second else Notice(what, str(first), str(second), withheld)


def _directions(first: Summary, second: Summary) -> Notice | None:
    ours, theirs = ({d.direction for d in each.configurations[0].directions} for each in (first, second))
    if ours == theirs:
        return None
    words = [f"{len(a):,}, {len(a - b):,} of them only here" for a, b in ((ours, theirs), (theirs, ours))]
    return Notice("directions", words[0], words[1], withheld=True)


def _signature(name: str, first: Summary, second: Summary) -> Notice | None:
    signatures = ["; ".join(each.signatures.get(name, ())) or "none" for each in (first, second)]
    return _notice(f"signature of {metric_name(name)}", signatures[0], signatures[1], withheld=True)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _pair(
    ours: ConfigurationSummary, theirs: ConfigurationSummary, first: Summary, second: Summary
) -> ConfigurationPair:
    outcomes = [None if c.verdict is None else c.verdict.outcome for c in (ours, theirs)]
    return ConfigurationPair(
        ours.name,
        (ours.kept, theirs.kept),
        (ours.weight_bytes, theirs.weight_bytes),
        (outcomes[0], outcomes[1]),
        tuple(_figures(ours, theirs, first, second)),
        tuple(_moved(ours, theirs)) if _comparable("chrf", first, second) else (),
    )


def _figures(
    ours: ConfigurationSummary, theirs: ConfigurationSummary, first: Summary, second: Summary
) -> Iterator[FigurePair]:
    others = {group.name: group.figures for group in theirs.groups}
    for group in ours.groups:
        same = _codes(ours, group.name) == _codes(theirs, group.name)
        for name in (*METRICS, *_SURFACE, *detectors(first), ANY):
            a, b = group.figures.get(name), others.get(group.name, {}).get(name)
            if a is not None and b is not None:
                known = same and _comparable(name, first, second)
                yield FigurePair(group.name, name, a, b, difference(a, b) if known else None)


def _codes(configuration: ConfigurationSummary, group: str) -> set[str]:
    return {d.direction for d in members(configuration, group)}


def _comparable(name: str, first: Summary, second: Summary) -> bool:
    """Return whether two evaluations measured a figure alike, on as many sentences."""
    needed = {*detectors(first), *detectors(second)} - {UNLIKELY} if name == ANY else {name}
    alike = all(first.signatures.get(each) == second.signatures.get(each) for each in needed)
    return alike and first.sentences == second.sentences


def _moved(ours: ConfigurationSummary, theirs: ConfigurationSummary) -> list[Moved]:
    others = {d.direction: d for d in theirs.directions}
    found = [
        Moved(
            d.direction,
            d.figures["chrf"],
            others[d.direction].figures["chrf"],
            d.figures["length_ratio"],
            others[d.direction].figures["length_ratio"],
        )
        for d in ours.directions
        if d.direction in others and d.figures["chrf"] != others[d.direction].figures["chrf"]
    ]
    return sorted(found, key=lambda each: (-abs(each.difference), each.direction))[:_MOVED]
