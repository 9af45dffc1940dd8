"""Options of detectors, and the detectors that they ask for."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.evaluation.detectors import Detector


def add_detectors(parser: argparse.ArgumentParser) -> None:
    """Add `--lid-model`, `--threshold` and the folders of models."""
    parser.add_argument(
        "--lid-model",
        type=Path,
        metavar="FILE",
        help="fastText model that identifies languages: lid218e, GlotLID, ...",
    )
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="NAME=VALUE", help="of a detector; may be repeated"
    )
    for name, what in (("labse", "LaBSE"), ("comet", "COMET-QE")):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=f"a local {what} model as one more detector")


def detectors_of(options: argparse.Namespace, languages: Sequence[str]) -> tuple[Detector, ...]:
    """Return the usual detectors and those of models, with the identifier and the thresholds asked for."""
    from nllb_prune.evaluation.detectors import THRESHOLDS, usual_detectors
    from nllb_prune.evaluation.detectors.identification import identifier_of
    from nllb_prune.evaluation.detectors.models import MODELS, model_detector

    thresholds = parse_thresholds(options.threshold)
    folders = {name: folder for name in MODELS if (folder := getattr(options, name)) is not None}
    usual = {name: value for name, value in thresholds.items() if name in THRESHOLDS or name not in folders}
    return (
        *usual_detectors(identifier=identifier_of(options.lid_model), languages=languages, thresholds=usual),
        *(model_detector(name, folder, threshold=thresholds.get(name)) for name, folder in folders.items()),
    )


def parse_thresholds(texts: Sequence[str]) -> dict[str, float]:
    """Read `NAME=VALUE` options.

    Raises:
        UsageError: if one is no such pair.
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise UsageError(
                f"`--threshold` must be NAME=VALUE with a finite value, as in script=0.6, but is `{text}` instead."
            )
    return found
