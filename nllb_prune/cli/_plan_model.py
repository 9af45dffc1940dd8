"""The model that a plan asks: refused if it is not that of the statistics."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import load, placement

if TYPE_CHECKING:
    from nllb_prune.calibration.statistics import ExpertStatistics


def load_checked(options: argparse.Namespace, statistics: ExpertStatistics) -> Any:
    """Load the model of the statistics, in the dtype that it was calibrated in."""
    stored = argparse.Namespace(**vars(options) | {"dtype": statistics.signature.get("dtype")})
    return load(options, **placement(stored))


def check_model(options: argparse.Namespace, statistics: ExpertStatistics) -> None:
    """Refuse a model that the statistics are not of, before it is loaded."""
    from nllb_prune.errors import UsageError
    from nllb_prune.model.loading import load_spec

    found = load_spec(options.model).fingerprint
    if found is None or not statistics.fingerprint.matches(found):
        name = statistics.signature.get("model", statistics.spec.family)
        raise UsageError(
            f"`--model` must be the model that `{options.statistics}` is of ({name}, fingerprint "
            f"{statistics.fingerprint.short}), but `{options.model}` is another "
            f"(fingerprint {'none' if found is None else found.short})."
        )
