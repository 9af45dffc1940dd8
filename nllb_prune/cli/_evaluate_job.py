"""What `nllb-prune evaluate` is to do: from its options, or from a suite."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nllb_prune.cli._options import backend_of, directions_of, open_text
from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction

if TYPE_CHECKING:
    from nllb_prune.corpus import ParallelText
    from nllb_prune.evaluation.suites.suites import Suite
    from nllb_prune.masks import MaskSet

_FIXED_BY_SUITE = ("split", "no_full")


@dataclass(frozen=True, slots=True)
class Job:
    """Models, text and configurations of an evaluation."""

    model: str
    dense: str | None
    text: ParallelText
    directions: tuple[Direction, ...]
    configurations: Mapping[str, MaskSet | None]
    sentences: int | None
    beams: int

    @property
    def names(self) -> tuple[str, ...]:
        """Configurations, the dense model's too."""
        return (*self.configurations, *(("dense",) if self.dense else ()))


def job_of(options: argparse.Namespace) -> Job | None:
    """Return what is to be done; None where `--needs` only asked what it would need."""
    return _from_options(options) if options.suite is None else _from_suite(options)


def _from_options(options: argparse.Namespace) -> Job:
    if options.model is None:
        raise UsageError("`MODEL` must be given, or `--suite`, but both are missing.")
    if options.statistics is not None or options.needs:
        raise UsageError("`--statistics` and `--needs` must go with `--suite`, but that is missing.")
    configurations: dict[str, MaskSet | None] = {} if options.no_full else {"full": None}
    configurations |= load_masks(options.masks, taken=("full", "dense"))
    if not configurations:
        raise UsageError("`--masks` must name at least one configuration with `--no-full`, but names none.")
    text = open_text(options)
    directions = directions_of(options, text, backend_of(options).load_tokenizer(options.model))
    beams = 1 if options.beams is None else options.beams
    return Job(options.model, options.dense, text, directions, configurations, options.sentences, beams)


def load_masks(texts: list[str], *, taken: tuple[str, ...] = ()) -> dict[str, MaskSet]:
    """Read `[NAME=]FILE` options; a name is that of a folder of results too."""
    from nllb_prune.masks import MaskSet

    found: dict[str, MaskSet] = {}
    for name, path in _named(texts):
        if name in (*found, *taken) or Path(name).name != name or name == "..":
            raise UsageError(
                f"`--masks` must give each configuration a name of its own, as in `NAME={path}`, other than full and "
                f"dense and without slashes, but gives {name} instead."
            )
        found[name] = MaskSet.load(path)
    return found


def _named(texts: list[str]) -> list[tuple[str, Path]]:
    pairs = [text.rpartition("=") for text in texts]
    return [(name or Path(file).stem, Path(file)) for name, _, file in pairs]


def _from_suite(options: argparse.Namespace) -> Job | None:
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.evaluation.suites.suites import GivenFiles, configurations, needs, suite
    from nllb_prune.evaluation.suites.suites import open_text as open_suite_text

    wanted = _changed(suite(options.suite), options)
    given = GivenFiles(
        model=options.model,
        dense=options.dense,
        text=options.text,
        statistics=options.statistics,
        masks=dict(_named(options.masks)),
    )
    found = needs(wanted, given, dtype=options.dtype or "float32", load_facts=backend_of(options).load_facts)
    if options.needs and options.json:
        print(json.dumps(found.to_json(), sort_keys=True))
    else:
        print(found.text(), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.needs:
        return None
    found.check()
    model = options.model or wanted.model.default
    assert model is not None
    statistics = None if options.statistics is None else ExpertStatistics.load(options.statistics)
    dense = options.dense or (wanted.dense.default if wanted.dense else None)
    return Job(
        model,
        dense,
        open_suite_text(wanted, options.text),
        wanted.pairs(),
        configurations(wanted, statistics, load_masks(options.masks)),
        wanted.sentences,
        wanted.beams,
    )


def _changed(suite: Suite, options: argparse.Namespace) -> Suite:
    """Return the suite with what the command line says otherwise."""
    for name in _FIXED_BY_SUITE:
        if getattr(options, name):
            raise UsageError(f"`--{name.replace('_', '-')}` must be left out with `--suite`, which says it.")
    changes = {
        "directions": None if options.directions is None else tuple(options.directions.split(",")),
        "sentences": options.sentences,
        "beams": options.beams,
    }
    return dataclasses.replace(suite, **{name: value for name, value in changes.items() if value is not None})
