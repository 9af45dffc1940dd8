"""What a suite is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nllb_prune.languages import Direction, english_and_ring, language_set, parse_directions

TextKind = Literal["mini", "FLORES-200"]
GivenKind = Literal["masks", "index"]

FLORES_LINES = {"dev": 997, "devtest": 1012}
"""Sentences of each split of FLORES-200 (arXiv 2207.04672)."""


@dataclass(frozen=True, slots=True)
class ModelWanted:
    """The model that a suite is about."""

    default: str | None = None
    """Used unless another is given."""
    family: str | None = None
    """As in `ModelSpec`."""
    experts: int | None = None
    """Of the whole model."""
    like: str | None = None
    """A model that fits, to name in messages; never fetched unless it is given."""


@dataclass(frozen=True, slots=True)
class DenseWanted:
    """A dense model to compare with."""

    default: str | None = None
    like: str | None = None
    optional: bool = False
    """Whether the suite runs without."""


@dataclass(frozen=True, slots=True)
class TextWanted:
    """The text that is translated."""

    kind: TextKind
    split: str


@dataclass(frozen=True, slots=True)
class CalibrationWanted:
    """How the statistics for planned masks are made."""

    split: str
    """Of the same text; another one than is translated."""
    granularity: Literal["language", "pair"] = "language"


@dataclass(frozen=True, slots=True)
class Planned:
    """A configuration whose masks are planned from statistics."""

    settings: Mapping[str, Any]
    """Arguments of `plan`."""


@dataclass(frozen=True, slots=True)
class Given:
    """A configuration whose masks are given, as a file of masks or imported from a published index."""

    kind: GivenKind
    optional: bool = False
    """Whether the suite runs without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is evaluated: on which text, in which directions, with which masks, against what."""

    name: str
    source: str
    """What `suite` finds it by: its name, or the path of its file."""
    description: str
    languages: str
    """A language set."""
    directions: tuple[str, ...]
    """`all`, `english` (into and out of English), or directions as on the command line."""
    sentences: int | None
    """The first so many lines; all by default."""
    beams: int
    model: ModelWanted
    text: TextWanted
    calibration: CalibrationWanted | None
    """None where nothing is planned."""
    full: bool
    """Whether the full model is scored."""
    dense: DenseWanted | None
    configurations: Mapping[str, Planned | Given]

    @property
    def codes(self) -> tuple[str, ...]:
        """FLORES-200 codes of the languages."""
        return language_set(self.languages).codes

    @property
    def planned(self) -> dict[str, Planned]:
        """The configurations that are planned."""
        return {name: each for name, each in self.configurations.items() if isinstance(each, Planned)}

    def pairs(self) -> tuple[Direction, ...]:
        """Return source and target of each direction."""
        if self.directions == ("english",):
            return english_and_ring(self.codes, others=0)
        return parse_directions(",".join(self.directions), self.codes)

    def directions_text(self) -> str:
        """Return each direction by name, as `--directions` reads them, whatever other languages the text has."""
        return ",".join(f"{source}-{target}" for source, target in self.pairs())


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenFiles:
    """What the user gives a suite."""

    model: str | None = None
    dense: str | None = None
    text: str | None = None
    """As for `ParallelText.open`; the suite says the split."""
    statistics: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    """Mask files by configuration."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a suite needs."""

    what: str
    found: str
    """What there is."""
    missing: str | None = None
    """What is wrong and what to do; None if all is there."""
