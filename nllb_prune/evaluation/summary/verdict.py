"""Is a configuration good enough? Each limit has a value to warn at and one to reject at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import UNLIKELY
from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH
from nllb_prune.evaluation.summary.summary import DirectionSummary, Figure, GroupSummary, Verdict

LIMITS: Mapping[str, tuple[float, float]] = {
    "mean_loss": (0.5, 2.0),  # chrF++, mean over directions
    "into_english_loss": (1.0, 3.0),  # chrF++, where decoders over-generate first
    "worst_loss": (3.0, 8.0),  # chrF++, of one direction
    "bleu_loss": (1.0, 3.0),  # sees the over-generation that chrF++ hides
    "length_change": (0.03, 0.10),  # output / reference, in any group of directions
    "rate_rise": (0.01, 0.03),  # share of sentences that a detector flags
}
"""Warn at, reject at. A change counts if its 95 % interval leaves 0 out; the loss of the worst direction, being the
largest of many, by the near end of its interval. The published 80 % masks of NLLB-200 fail `length_change`."""

_FEWEST = 20
"""Sentences of a direction, below which there is always a warning: intervals of fewer mean little."""
_WORDS = ("accepted", "accepted with warnings", "rejected")


@dataclass(frozen=True, slots=True)
class _Finding:
    limit: str
    size: float
    text: str


def parse_limits(texts: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Read `NAME=WARN/REJECT`, and return all limits with those replaced.

    Raises:
        UsageError: on an unknown name, or values that are not two numbers in order.
    """
    limits = dict(LIMITS)
    for text in texts:
        name, _, values = text.partition("=")
        try:
            warn, reject = map(float, values.split("/"))
        except ValueError:
            warn, reject = 1.0, 0.0
        if name not in LIMITS or not 0 <= warn <= reject:
            raise UsageError(
                f"`limit` must be NAME=WARN/REJECT with WARN <= REJECT and a name of {', '.join(LIMITS)}, as in "
                f"`mean_loss=0.5/2`, but is `{text}` instead."
            )
        limits[name] = (warn, reject)
    return limits


def judge(
    groups: Sequence[GroupSummary],
    directions: Sequence[DirectionSummary],
    *,
    detectors: Sequence[str],
    limits: Mapping[str, tuple[float, float]],
    sentences: int,
) -> Verdict:
    """Hold a compared configuration against the limits; unlikely outputs are no fault by themselves.

    Args:
        groups: Its figures, with changes against the baseline.
        directions: Its directions.
        detectors: Whose rates are looked at.
        limits: By name, to warn at and to reject at.
        sentences: Of each direction.
    """
    findings = [
        *_losses(groups),
        *_worst(directions),
        *_lengths(groups),
        *(finding for name in detectors if name != UNLIKELY for finding in _rises(groups, name)),
    ]
    passed = [(_severity(each, limits), each) for each in findings]
    kept = [(severity, each) for severity, each in passed if severity]
    kept.sort(key=lambda pair: -pair[0])  # stable: the order of limits within a severity
    reasons = [f"{each.text} ({_shown(each.limit, limits)})" for _, each in kept]
    worst = max((severity for severity, _ in kept), default=0)
    if sentences < _FEWEST:
        reasons.append(
            f"{sentences} sentences a direction are too few to tell ({_FEWEST} or more are enough to begin with)"
        )
        worst = max(worst, 1)
    return Verdict(_WORDS[worst], tuple(reasons))  # type: ignore[arg-type]


def _severity(finding: _Finding, limits: Mapping[str, tuple[float, float]]) -> int:
    warn, reject = limits[finding.limit]
    return 2 if finding.size > reject else 1 if finding.size > warn else 0


def _shown(limit: str, limits: Mapping[str, tuple[float, float]]) -> str:
    scale = 100 if limit == "rate_rise" else 1  # rates are told in percent
    warn, reject = (scale * value for value in limits[limit])
    return f"limits {warn:g} to warn, {reject:g} to reject"


def _losses(groups: Sequence[GroupSummary]) -> list[_Finding]:
    by_name = {group.name: group.figures for group in groups}
    asked = [("mean_loss", ALL, "chrf", "chrF++"), ("into_english_loss", INTO_ENGLISH, "chrf", "chrF++")]
    asked.append(("bleu_loss", ALL, "spbleu" if "spbleu" in by_name[ALL] else "bleu", "BLEU"))
    return [
        _Finding(limit, loss, f"loses {loss:.2f} {word} {_over(group)}")
        for limit, group, metric, word in asked
        if group in by_name and (loss := _loss(by_name[group][metric]))
    ]


def _over(group: str) -> str:
    return "on average" if group == ALL else group


def _loss(figure: Figure) -> float:
    change = figure.change
    return -change.value if change is not None and change.high < 0 else 0.0


def _worst(directions: Sequence[DirectionSummary]) -> list[_Finding]:
    lost = [(d.changes["chrf"].high, d.direction, d.changes["chrf"].value) for d in directions if "chrf" in d.changes]
    if not lost or min(lost)[0] >= 0:
        return []
    high, direction, value = min(lost)
    return [_Finding("worst_loss", -high, f"loses {-value:.1f} chrF++ in {direction}, {-high:.1f} at the least")]


def _lengths(groups: Sequence[GroupSummary]) -> list[_Finding]:
    found = []
    for group in groups:
        figure = group.figures["length_ratio"]
        change = figure.change
        if change is not None and change.low * change.high > 0:
            how = "longer" if change.value > 0 else "shorter"
            text = f"outputs are {how} {_over(group.name)}: length ratio {figure.value:.3f}, {change.value:+.3f}"
            found.append(_Finding("length_change", abs(change.value), text))
    return sorted(found, key=lambda each: -each.size)[:1]


def _rises(groups: Sequence[GroupSummary], detector: str) -> list[_Finding]:
    found = []
    for group in groups:
        figure = group.figures.get(detector)
        change = None if figure is None else figure.change
        if figure is not None and change is not None and change.low > 0:
            text = f"{detector}: {100 * figure.value:.1f} % of outputs {_over(group.name)}, {100 * change.value:+.1f}"
            found.append(_Finding("rate_rise", change.value, text))
    return sorted(found, key=lambda each: -each.size)[:1]
