"""`evaluate`: text and masks to results, every configuration in every direction, without reloading the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nllb_prune.backends import TRANSFORMERS, named_backend
from nllb_prune.corpus import ParallelText
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.measuring import Measuring, usual_measuring
from nllb_prune.evaluation.results import RESULT_FILES, DirectionResult
from nllb_prune.evaluation.work import EvaluationItem, EvaluationWork, Search, in_order
from nllb_prune.evaluation.worker import Worker
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import facts_of
from nllb_prune.worklist import Mapper, Progress, StaleFile, compute_items, one_by_one, stale_reasons

__all__ = ["Search", "evaluate", "evaluate_elsewhere"]

Told = Callable[[str], None]
MakeMapper = Callable[
    [Callable[[], Callable[[EvaluationItem], DirectionResult]]], Mapper[EvaluationItem, DirectionResult]
]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    text: ParallelText,
    directions: Sequence[Direction],
    configurations: Mapping[str, MaskSet | None],
    *,
    folder: Path,
    measuring: Measuring | None = None,
    sentences: int | None = None,
    search: Search = Search(),  # noqa: B008 - frozen
    force: bool = False,
    progress: Progress | None = None,
    told: Told | None = None,
) -> Evaluation:
    """Translate the directions with each configuration and measure the outputs.

    There is one result file a configuration and direction: a killed run continues, and results of other settings are
    made again; where only measures changed, the translations are kept.

    Args:
        model: From `load_model`, with all its experts (or dense, then with no masks).
        tokenizer: Its tokenizer.
        text: Aligned lines to report on: never those the masks were calibrated on.
        directions: Source and target languages.
        configurations: Masks by name; `None` is the full model.
        folder: Where the result files are.
        measuring: What is measured; `usual_measuring` by default.
        sentences: Lines of each direction; all by default.
        search: Beams and batches.
        force: Make all results again.
        progress: Wraps the loop over items.
        told: Is told which results are made again and why.

    Raises:
        UsageError: on a pruned or masked model, masks of another one, or without one of the languages.
    """
    work = EvaluationWork(
        facts=facts_of(model),
        text=text if sentences is None else text.head(sentences),
        directions=in_order(directions),
        configurations=configurations,
        search=search,
        measuring=usual_measuring(tokenizer) if measuring is None else measuring,
        folder=folder,
    )
    return _run(work, one_by_one(Worker(model, tokenizer, work, force)), force=force, progress=progress, told=told)


def evaluate_elsewhere(
    model: str | Path,
    text: ParallelText,
    directions: Sequence[Direction],
    configurations: Mapping[str, MaskSet | None],
    *,
    make_mapper: MakeMapper,
    folder: Path,
    measuring: Measuring,
    sentences: int | None = None,
    search: Search = Search(),  # noqa: B008 - frozen
    dtype: torch.dtype | None = None,
    device: str | None = None,
    backend: str = TRANSFORMERS,
    force: bool = False,
    progress: Progress | None = None,
    told: Told | None = None,
) -> Evaluation:
    """Do what `evaluate` does with workers that load the model themselves, such as those of `on_ray.ray_mapper`.

    Args:
        model: Path or id, which all workers can read.
        text: As in `evaluate`; from `ParallelText.open`, with files that all workers can read.
        directions: As in `evaluate`.
        configurations: As in `evaluate`.
        make_mapper: Takes a picklable factory of what computes an item, and returns what runs several of them.
        folder: As in `evaluate`; written by this process.
        measuring: As in `evaluate`.
        sentences: As in `evaluate`.
        search: As in `evaluate`.
        dtype: As in `load_model`.
        device: As in `load_model`, of each worker.
        backend: One of `backends.BACKENDS`.
        force: As in `evaluate`.
        progress: As in `evaluate`.
        told: As in `evaluate`.

    Raises:
        UsageError: as `evaluate`.
    """
    work = EvaluationWork(
        facts=named_backend(backend).load_facts(model, dtype=dtype, device=device),
        text=text if sentences is None else text.head(sentences),
        directions=in_order(directions),
        configurations=configurations,
        search=search,
        measuring=measuring,
        folder=folder,
    )
    factory = WorkerFactory(str(model), dtype, device, work, backend, force)
    return _run(work, make_mapper(factory), force=force, progress=progress, told=told)


@dataclass(frozen=True, slots=True)
class WorkerFactory:
    """Loads the model where the work is done; can be pickled."""

    model: str
    dtype: torch.dtype | None
    device: str | None
    work: EvaluationWork
    backend: str = TRANSFORMERS
    force: bool = False

    def __call__(self) -> Callable[[EvaluationItem], DirectionResult]:
        """Return what computes an item."""
        found = named_backend(self.backend)
        model = found.load_model(self.model, dtype=self.dtype, device=self.device)
        return Worker(model, found.load_tokenizer(self.model), self.work, self.force)


def _run(
    work: EvaluationWork,
    mapper: Mapper[EvaluationItem, DirectionResult],
    *,
    force: bool,
    progress: Progress | None,
    told: Told | None,
) -> Evaluation:
    def tell(files: Sequence[StaleFile]) -> None:
        if told is not None:
            told(f"{len(files)} result{'s' * (len(files) > 1)} made again: {stale_reasons(files)}")

    compute_items(
        work.items(),
        work.folder,
        settings=work.settings,
        mapper=mapper,
        results=RESULT_FILES,
        stale="recompute",
        on_stale=tell,
        restart=force,
        progress=progress,
    )
    return work.evaluation()
