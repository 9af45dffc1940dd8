"""From the results of directions to one line a configuration, compared with the full model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json, write_json
from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.significance import Comparison, paired_bootstrap_over_directions

ENGLISH = "eng_Latn"
_FORMAT, _VERSION = "nllb-prune/evaluation", 1


@dataclass(frozen=True, slots=True)
class DirectionSummary:
    """The numbers of one configuration in one direction."""

    source: str
    target: str
    kept: float
    chrf: float
    bleu: float
    length_ratio: float
    oscillating: float
    repeat_rate: float
    """Share of 4-grams that repeat an earlier one of the same output."""
    long: float

    @property
    def direction(self) -> str:
        """`source-target`."""
        return f"{self.source}-{self.target}"

    @classmethod
    def of(cls, result: DirectionResult) -> DirectionSummary:
        """Take the numbers of a result."""
        over = result.overgeneration
        return cls(
            result.source,
            result.target,
            result.kept,
            result.scores.chrf.value,
            result.scores.bleu.value,
            over.length_ratio,
            over.oscillating,
            over.repeat_rate[4],
            over.long,
        )


@dataclass(frozen=True, slots=True)
class ConfigurationSummary:
    """One configuration over all directions; means are unweighted over directions."""

    name: str
    directions: tuple[DirectionSummary, ...]
    comparison: Comparison | None
    """chrF++ against the baseline; `None` for the baseline itself."""
    worst: tuple[str, float] | None
    """Direction that loses the most chrF++ against the baseline, and how much it gains (negative: loses)."""

    def mean(self, field: str, *, among: Iterable[DirectionSummary] | None = None) -> float:
        """Return the mean of a number over all directions, or over those given; 0 of none."""
        values = [getattr(d, field) for d in (self.directions if among is None else among)]
        return sum(values) / len(values) if values else 0.0

    def out_of_english(self) -> list[DirectionSummary]:
        """Return the directions out of English."""
        return [d for d in self.directions if d.source == ENGLISH]

    def into_english(self) -> list[DirectionSummary]:
        """Return the directions into English."""
        return [d for d in self.directions if d.target == ENGLISH]


@dataclass(frozen=True, slots=True)
class Summary:
    """Every configuration, and what the numbers are."""

    configurations: tuple[ConfigurationSummary, ...]
    baseline: str
    sentences: int
    """Of each direction."""
    signatures: Mapping[str, tuple[str, ...]]
    """sacrebleu's signatures by metric; BLEU has one for each tokenizer."""

    def __getitem__(self, name: str) -> ConfigurationSummary:
        for configuration in self.configurations:
            if configuration.name == name:
                return configuration
        known = ", ".join(c.name for c in self.configurations)
        raise UsageError(f"`configuration` must be one of {known}, but is {name} instead.")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "tool": f"nllb-prune {__version__}",
            "baseline": self.baseline,
            "sentences": self.sentences,
            "signatures": {metric: list(found) for metric, found in self.signatures.items()},
            "configurations": [asdict(configuration) for configuration in self.configurations],
        }

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
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
            raise UsageError(f"`{path}` must be the summary of an evaluation (`{_FORMAT}` {_VERSION}), but is not.")
        return cls(
            tuple(_configuration(each) for each in content["configurations"]),
            content["baseline"],
            content["sentences"],
            {metric: tuple(found) for metric, found in content["signatures"].items()},
        )


def _configuration(content: Mapping[str, Any]) -> ConfigurationSummary:
    comparison, worst = content["comparison"], content["worst"]
    return ConfigurationSummary(
        content["name"],
        tuple(DirectionSummary(**direction) for direction in content["directions"]),
        None if comparison is None else Comparison.from_json(comparison),
        None if worst is None else (worst[0], worst[1]),
    )


def summarise(results: Sequence[DirectionResult], *, baseline: str = "full") -> Summary:
    """Sum up results of equal directions for every configuration; the baseline may be any of them.

    Raises:
        UsageError: if there are no results, or the baseline is not among them.
    """
    names = list(dict.fromkeys(result.configuration for result in results))
    if baseline not in names:
        raise UsageError(
            f"`baseline` must be one of {', '.join(names) or 'no configuration'}, but is {baseline} instead."
        )
    by_name = {name: {r.direction: r for r in results if r.configuration == name} for name in names}
    signatures: dict[str, set[str]] = {"chrF++": set(), "BLEU": set()}
    for result in results:
        signatures["chrF++"].add(result.scores.chrf.signature)
        signatures["BLEU"].add(result.scores.bleu.signature)
    return Summary(
        tuple(_compared(name, by_name[name], None if name == baseline else by_name[baseline]) for name in names),
        baseline,
        results[0].scores.sentences,
        {metric: tuple(sorted(found)) for metric, found in signatures.items()},
    )


def _compared(
    name: str, results: Mapping[str, DirectionResult], baseline: Mapping[str, DirectionResult] | None
) -> ConfigurationSummary:
    directions = tuple(DirectionSummary.of(result) for result in results.values())
    if baseline is None:
        return ConfigurationSummary(name, directions, None, None)
    comparison = compare(results, baseline)
    gains = {d: r.scores.chrf.value - baseline[d].scores.chrf.value for d, r in results.items()}
    worst = min(gains, key=lambda direction: gains[direction])
    return ConfigurationSummary(name, directions, comparison, (worst, gains[worst]))


def compare(system: Mapping[str, DirectionResult], baseline: Mapping[str, DirectionResult]) -> Comparison:
    """Compare the mean chrF++ over directions of two configurations by paired bootstrap."""
    return paired_bootstrap_over_directions(
        {direction: result.scores.chrf_statistics for direction, result in system.items()},
        {direction: result.scores.chrf_statistics for direction, result in baseline.items()},
        metric="chrf",
    )


HEADER = (
    "configuration",
    "kept",
    "chrF++",
    "out of eng",
    "into eng",
    "lowest",
    "BLEU",
    "length",
    "osc. %",
    "repeat %",
    "worst loss",
    "p",
)


def table_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Return the lines of the table people look at first, under `HEADER`."""
    rows: list[tuple[str, ...]] = []
    for c in summary.configurations:
        p = "" if c.comparison is None else f"{c.comparison.p_value:.3f}"
        worst = "" if c.worst is None else f"{c.worst[0]} {c.worst[1]:+.1f}"
        rows.append(
            (
                c.name,
                f"{c.mean('kept'):.1%}",
                f"{c.mean('chrf'):.2f}",
                f"{c.mean('chrf', among=c.out_of_english()):.2f}",
                f"{c.mean('chrf', among=c.into_english()):.2f}",
                f"{min(d.chrf for d in c.directions):.2f}",
                f"{c.mean('bleu'):.2f}",
                f"{c.mean('length_ratio'):.3f}",
                f"{100 * c.mean('oscillating'):.1f}",
                f"{100 * c.mean('repeat_rate'):.1f}",
                worst,
                p,
            )
        )
    return rows
