"""Planning in rounds on a model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import open_text, progress_bar
from nllb_prune.cli._plan_model import check_model, load_checked

if TYPE_CHECKING:
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.masks import MaskSet


def plan_rounds_on_model(options: argparse.Namespace, statistics: ExpertStatistics, asked: dict[str, Any]) -> MaskSet:
    """Plan in rounds, each observed as the statistics were made."""
    from nllb_prune.calibration.again import calibrate_again
    from nllb_prune.model.source import load_tokenizer
    from nllb_prune.planning.rounds import plan_in_rounds

    check_model(options, statistics)
    text, tokenizer = open_text(options), load_tokenizer(options.model)
    model = load_checked(options, statistics)
    with _work_folder(options) as work:

        def observe(masks: MaskSet) -> ExpertStatistics:
            return calibrate_again(
                statistics,
                model,
                tokenizer,
                text,
                masks=masks,
                folder=work / masks.signature,
                progress=progress_bar("calibrating"),
            )

        return plan_in_rounds(statistics, observe, rounds=options.rounds, **asked)


@contextmanager
def _work_folder(options: argparse.Namespace) -> Iterator[Path]:
    """Give the folder of finished directions; that of a dry run goes with it, unless it was asked for."""
    if options.dry_run and options.work is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield options.work or options.output.with_suffix(".work")
