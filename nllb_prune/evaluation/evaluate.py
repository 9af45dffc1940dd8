"""Translate and score a work list: every configuration in every direction, in one process, without reloading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.overgeneration import measure
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.scores import score
from nllb_prune.generation.decode import POSITIONS, ROWS
from nllb_prune.generation.translate import translate
from nllb_prune.languages import Direction, split_direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import dtype_name
from nllb_prune.model.routing import routing_of
from nllb_prune.worklist import Progress, WorkItem, run_items


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    text: ParallelText,
    directions: Sequence[Direction],
    configurations: Mapping[str, MaskSet | None],
    *,
    folder: Path,
    sentences: int | None = None,
    beams: int = 1,
    restart: bool = False,
    progress: Progress | None = None,
) -> list[DirectionResult]:
    """Translate and score the directions with each configuration.

    Args:
        model: From `load_model`, with all its experts (or dense, then with no masks).
        tokenizer: Its tokenizer.
        text: Aligned lines to report on: never those the masks were calibrated on.
        directions: Source and target languages.
        configurations: Masks by name; `None` is the full model.
        folder: One result file a configuration and direction, so that a killed run continues.
        sentences: Lines of each direction; all by default.
        beams: 1 is greedy.
        restart: Make results of other settings again.
        progress: Wraps the loop over directions.

    Raises:
        UsageError: on masks of another model or without one of the languages, or results of other settings.
    """
    text = text if sentences is None else text.head(sentences)
    state = routing_of(model)
    spec = state.spec
    if state.resident is not None or any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError("`model` must be the full one, but is pruned or has masks set; give them as configurations.")
    for masks in configurations.values():
        if masks is not None:
            masks.check_model(spec)
            for direction in directions:
                masks.direction(*direction)  # a language without a mask is refused before the first translation
    results: list[DirectionResult] = []
    items = [WorkItem(f"{source}-{target}") for source, target in directions]
    for name, masks in configurations.items():
        _check_name(name)
        compute = _Computation(model, tokenizer, text, name, masks, beams)
        found = run_items(
            items, folder / name, settings=compute.settings, compute=compute, restart=restart, progress=progress
        )
        results += [DirectionResult.from_json(content) for content in found]
    return results


def _check_name(name: str) -> None:
    if Path(name).name != name or name.startswith("."):
        raise UsageError(
            f"`configurations` must be named without slashes, as folders are, but one is {name!r} instead."
        )


@dataclass(frozen=True, slots=True)
class _Computation:
    model: nn.Module
    tokenizer: Any
    text: ParallelText
    name: str
    masks: MaskSet | None
    beams: int

    def settings(self, item: WorkItem) -> dict[str, Any]:
        """Return what the result of a direction depends on."""
        return {
            "model": routing_of(self.model).identity,
            "masks": None if self.masks is None else self.masks.signature,
            "text": [self.text.digest(code) for code in split_direction(item.id)],
            "beams": self.beams,
            "dtype": dtype_name(self.model),
            "in_flight": [ROWS, POSITIONS],
        }

    def __call__(self, item: WorkItem) -> dict[str, Any]:
        source, target = split_direction(item.id)
        sources, references = self.text.lines(source), self.text.lines(target)
        hypotheses = translate(
            self.model, self.tokenizer, sources, source=source, target=target, masks=self.masks, beams=self.beams
        )
        return DirectionResult(
            self.name,
            source,
            target,
            1.0 if self.masks is None else self.masks.kept_fraction(source, target),
            tuple(hypotheses),
            score(hypotheses, references, target=target),
            measure(hypotheses, references, sources=sources, source=source, target=target),
        ).to_json()
