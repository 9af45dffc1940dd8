"""Suites: named evaluations, from files such as `eval/suites/mini.toml`, and the masks that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.suites.needs import Needs, needs, open_text
from nllb_prune.evaluation.suites.reading import read_suite
from nllb_prune.evaluation.suites.records import (
    CalibrationWanted,
    DenseWanted,
    Given,
    GivenFiles,
    ModelWanted,
    Need,
    Planned,
    Suite,
    TextWanted,
)
from nllb_prune.masks import MaskSet
from nllb_prune.planning.members import languages_of
from nllb_prune.planning.plan import plan

__all__ = [
    "CalibrationWanted",
    "DenseWanted",
    "Given",
    "GivenFiles",
    "ModelWanted",
    "Need",
    "Needs",
    "Planned",
    "Suite",
    "TextWanted",
    "configurations",
    "needs",
    "open_text",
    "suite",
    "suite_names",
]


@cache
def suite_names() -> tuple[str, ...]:
    """Return the names of the suites that come with the toolkit."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def suite(name_or_path: str | Path) -> Suite:
    """Return a suite that comes with the toolkit, or read one from a `.toml` file.

    Raises:
        UsageError: if there is no such suite, or its file has something wrong.
    """
    source = str(name_or_path)
    if source in suite_names():
        return read_suite((_folder() / f"{source}.toml").read_text(encoding="utf-8"), name=source, source=source)
    path = Path(name_or_path)
    if path.suffix != ".toml" or not path.is_file():
        raise UsageError(
            f"`suite` must be one of {', '.join(suite_names())}, or a `.toml` file, but is `{source}` instead."
        )
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"`{source}` must be UTF-8 text, but is not ({error}).") from None
    return read_suite(content, name=path.stem, source=source)


def configurations(
    suite: Suite, statistics: ExpertStatistics | None, given_masks: Mapping[str, MaskSet]
) -> dict[str, MaskSet | None]:
    """Return the masks of each configuration by its name, the full model's `None` first.

    A dense model is not among them, being another model.

    Args:
        suite: the suite.
        statistics: to plan from; None only where nothing is planned.
        given_masks: by the name of the configuration; those that are optional may be missing.

    Raises:
        UsageError: if statistics or masks are missing, masks fit no configuration, or a plan cannot be made.
    """
    given = {name for name, each in suite.configurations.items() if isinstance(each, Given)}
    if unknown := sorted(set(given_masks) - given):
        raise UsageError(
            f"`masks` of the suite {suite.name} must be for {', '.join(sorted(given)) or 'no configuration'}, "
            f"but are for {', '.join(unknown)} too."
        )
    found: dict[str, MaskSet | None] = {"full": None} if suite.full else {}
    for name, wanted in suite.configurations.items():
        if isinstance(wanted, Planned):
            found[name] = _planned(suite, name, wanted, statistics)
        elif name in given_masks:
            found[name] = given_masks[name]
        elif not wanted.optional:
            raise UsageError(f"`{name}` of the suite {suite.name} must be given masks, but has none.")
    return found


def _planned(suite: Suite, name: str, wanted: Planned, statistics: ExpertStatistics | None) -> MaskSet:
    if statistics is None:
        raise UsageError(f"`{name}` of the suite {suite.name} must be planned from statistics, but there are none.")
    languages = None if languages_of(statistics) == set(suite.codes) else suite.codes
    return plan(statistics, languages=languages, **wanted.settings)


@cache
def _folder() -> Traversable:
    """Return `suites`: inside the package when installed, in `eval` beside it in a checkout."""
    package = files("nllb_prune")
    installed = package / "suites"
    return installed if installed.is_dir() else package / ".." / "eval" / "suites"
