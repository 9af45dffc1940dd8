"""The models that both libraries load: whole, dense, within masks, and pruned checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.fairseq2.common import DIRECTIONS, TEST
from eval.fairseq2.statistics import calibrated
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import embedded_masks
from nllb_prune.planning.plan import plan

ONE: tuple[Direction, ...] = (("eng_Latn", "deu_Latn"),)


@dataclass(frozen=True, slots=True)
class Compared:
    """A model, and what it is compared on."""

    name: str
    model: str | Path
    directions: Sequence[Direction] = DIRECTIONS
    masks: MaskSet | None = None

    def count(self, of_each: int) -> int:
        """Return how many sentences of each direction; ten times as many where it is one."""
        return of_each if len(self.directions) > 1 else 10 * of_each


def compared_models(work: Path) -> list[Compared]:
    """Return all of them; those that are pruned are made first."""
    masks = MaskSet.load(embedded_masks())
    counted = calibrated(load_model("mini"), work / "statistics", sentences=200)
    union = plan(counted, kept=0.25, granularity="union", budget_for="union", languages=TEST.languages)
    return [
        Compared("mini", "mini"),
        Compared("mini-dense", "mini-dense"),
        Compared("mini within its masks, 25 %", "mini", masks=masks),
        Compared("union of ten languages, 25 %", _exported(work / "union", union, DIRECTIONS)),
        Compared("English into German", _exported(work / "one", masks, ONE), ONE),
        Compared("English into German, int8", _exported(work / "int8", masks, ONE, experts="int8"), ONE),
    ]


def _exported(folder: Path, masks: MaskSet, directions: Sequence[Direction], **settings: Any) -> Path:
    export("mini", folder, masks=masks, directions=list(directions), settings=ExportSettings(**settings))
    return folder
