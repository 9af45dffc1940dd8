"""Calibrating again: the same text, directions and settings, the model within masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from nllb_prune.calibration.calibrate import Mode, calibrate
from nllb_prune.calibration.statistics import TEXT, ExpertStatistics
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.languages import split_direction
from nllb_prune.masks import MaskSet
from nllb_prune.worklist import Progress


def calibrate_again(
    statistics: ExpertStatistics,
    model: nn.Module,
    tokenizer: Any,
    text: ParallelText,
    *,
    masks: MaskSet,
    folder: Path,
    restart: bool = False,
    progress: Progress | None = None,
) -> ExpertStatistics:
    """Make statistics of a model within masks the way others were made of it.

    Args:
        statistics: The others; their directions, lines, groups and mode are used.
        model: The model they are of, with the dtype it had.
        tokenizer: Its tokenizer.
        text: The text they were made from.
        masks: Each direction is observed within its own.
        folder: As of `calibrate`.
        restart: As of `calibrate`.
        progress: As of `calibrate`.

    Raises:
        UsageError: on another text, and on what `calibrate` refuses.
    """
    how = statistics.signature
    sentences = int(how["sentences"])
    _check_text(statistics, text.head(sentences))
    mode, _, search = str(how["mode"]).partition(", ")
    return calibrate(
        model,
        tokenizer,
        text,
        [split_direction(item) for item in statistics.items],
        sentences=sentences,
        pairs_per_target=int(how["pairs_per_target"]) if "pairs_per_target" in how else None,
        granularity=statistics.granularity,
        collect=statistics.collect,
        mode=cast(Mode, mode),
        beams=int(search.removeprefix("beam ")) if search.startswith("beam ") else 1,
        masks=masks,
        folder=folder,
        restart=restart,
        progress=progress,
    )


def _check_text(statistics: ExpertStatistics, text: ParallelText) -> None:
    for name, digest in statistics.signature.items():
        code = name.removeprefix(TEXT)
        if name.startswith(TEXT) and text.digest(code) != digest:
            raise UsageError(
                f"`text` must be what the statistics were made from, but its lines in {code} differ; name that text."
            )
