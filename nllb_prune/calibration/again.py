"""Calibrating again: the same text, directions and settings, the model within masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from nllb_prune.calibration.calibrate import Mode, calibrate
from nllb_prune.calibration.statistics import TEXT, ExpertStatistics
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction, split_direction
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

    Directions that the masks do not cover are left out; where lines were spread over the sources of each target, those
    that are left share them.

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
        UsageError: on another text, statistics that do not say how they were made, a mask that no direction uses, and
            on what `calibrate` refuses.
    """
    how = statistics.signature
    if missing := [name for name in ("mode", "sentences") if name not in how]:
        raise UsageError(
            f"`statistics` must say how they were made to be made again, but lack {' and '.join(missing)}. "
            "Calibrate anew."
        )
    sentences = int(how["sentences"])
    _check_text(statistics, text.head(sentences))
    mode, _, search = str(how["mode"]).partition(", ")
    return calibrate(
        model,
        tokenizer,
        text,
        _covered(statistics, masks),
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


def _covered(statistics: ExpertStatistics, masks: MaskSet) -> list[Direction]:
    """Return the directions that the masks cover; together they use every mask."""
    directions = [direction for item in statistics.items if masks.covers(*(direction := split_direction(item)))]
    for stack, by_key in masks.masks.items():
        if unused := sorted(set(by_key) - {masks.key(stack, *direction) for direction in directions}):
            raise UsageError(
                f"`statistics` must have a direction for each of the masks, but none between their languages uses "
                f"{stack}/{unused[0]}. Calibrate one, or plan for other languages."
            )
    return directions


def _check_text(statistics: ExpertStatistics, text: ParallelText) -> None:
    for name, digest in statistics.signature.items():
        code = name.removeprefix(TEXT)
        if name.startswith(TEXT) and text.digest(code) != digest:
            raise UsageError(
                f"`text` must be what the statistics were made from, but its lines in {code} differ; name that text."
            )
