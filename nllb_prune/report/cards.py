"""One card for each configuration: is it good enough, what speaks against it, and the numbers behind that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH, OUT_OF_ENGLISH
from nllb_prune.evaluation.summary.summary import Change, ConfigurationSummary, Summary
from nllb_prune.evaluation.summary.table import ANY, figure_of, probability, size, worst_detector
from nllb_prune.report.names import interval, key_name, number

_LIMITS = {
    "mean_loss": "loss of chrF++, mean over directions",
    "into_english_loss": "loss of chrF++ into English",
    "worst_loss": "loss of chrF++ in one direction",
    "bleu_loss": "loss of BLEU (spBLEU if it was scored), mean over directions",
    "length_change": "change of the length ratio, in any group of directions",
    "rate_rise": "rise of the share of outputs that a detector flags, in any group, points",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A number of a card."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What to know of a configuration at first sight."""

    name: str
    outcome: str
    """Of the verdict, or `baseline`."""
    reasons: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def mood(self) -> str:
        """Name of the style: one word."""
        return {"accepted": "good", "accepted with warnings": "fair", "rejected": "bad"}.get(self.outcome, "neutral")


def cards(summary: Summary, *, first: str | None) -> list[Card]:
    """Return the cards, that of `first` at the top and that of the baseline at the end."""
    order = sorted(summary.configurations, key=lambda c: (c.name == summary.baseline, c.name != first))
    return [_card(each, summary) for each in order]


def limit_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """Return what each limit is about, where it warns and where it rejects."""
    order = [*_LIMITS, *sorted(summary.limits)]
    scales = {name: 100 if name == "rate_rise" else 1 for name in summary.limits}  # rates are told in percent
    return [
        (_LIMITS.get(name, name), f"{scales[name] * warn:g}", f"{scales[name] * no:g}")
        for name, (warn, no) in sorted(summary.limits.items(), key=lambda item: order.index(item[0]))
    ]


def _card(configuration: ConfigurationSummary, summary: Summary) -> Card:
    verdict = configuration.verdict
    outcome = "baseline" if configuration.name == summary.baseline else "not judged"
    facts = tuple(_facts(configuration, summary))
    if verdict is None:
        return Card(configuration.name, outcome, (), facts)
    return Card(configuration.name, verdict.outcome, tuple(map(_minus, verdict.reasons)), facts)


def _minus(text: str) -> str:
    return text.replace(", -", ", −")


def _facts(configuration: ConfigurationSummary, summary: Summary) -> Iterator[Fact]:
    full = summary[summary.baseline].weight_bytes
    share = f", {configuration.weight_bytes / full:.0%} of {summary.baseline}" if full else ""
    of_baseline = configuration.name == summary.baseline
    yield Fact("experts kept", f"{configuration.kept:.1%}")
    yield Fact("memory", size(configuration.weight_bytes), "" if of_baseline else share.removeprefix(", "))
    if of_baseline:
        yield Fact("mean chrF++", number(configuration.figure("chrf").value))
    for label, group in (("mean", ALL), ("out of English", OUT_OF_ENGLISH), ("into English", INTO_ENGLISH)):
        figure = figure_of(configuration, "chrf", group)
        if figure is not None and figure.change is not None:
            yield Fact(f"{label} chrF++", number(figure.change.value, sign=True), _certainty(figure.change))
    worst = configuration.worst()
    if worst is not None:
        yield Fact("worst direction", number(worst.changes["chrf"].value, 1, sign=True), key_name(worst.direction))
    yield from _surface(configuration, summary)


def _certainty(change: Change) -> str:
    return f"{interval(change.low, change.high)}, q {probability(change.q)}"


def _surface(configuration: ConfigurationSummary, summary: Summary) -> Iterator[Fact]:
    length = configuration.figure("length_ratio")
    was = f"{number(length.change.value, 3, sign=True)}" if length.change is not None else ""
    yield Fact("length ratio", f"{length.value:.3f}", was)
    flagged = figure_of(configuration, ANY)
    if flagged is not None:
        risen = "" if flagged.change is None else f"{number(100 * flagged.change.value, 1, sign=True)} points, "
        worst = worst_detector(configuration, summary)
        most = "" if worst is None else f"most: {worst[0]} {100 * worst[1].value:.1f} %"
        yield Fact("flagged outputs", f"{100 * flagged.value:.1f} %", risen + most)
