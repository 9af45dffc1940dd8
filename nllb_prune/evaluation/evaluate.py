"""Translate and score a work list: every configuration in every direction, in one process, without reloading."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nllb_prune.corpus import ParallelText
from nllb_prune.evaluation.overgeneration import measure
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.scores import score
from nllb_prune.generation.translate import translate
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
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
    spec = routing_of(model).spec
    for masks in configurations.values():
        if masks is not None:
            masks.check_model(spec)
            for direction in directions:
                masks.direction(*direction)  # a language without a mask is refused before the first translation
    results: list[DirectionResult] = []
    for name, masks in configurations.items():
        settings = {
            "model": spec.fingerprint.short if spec.fingerprint and spec.stacks else model_name(model),
            "masks": None if masks is None else masks.signature,
            "text": digest(text, directions),
            "beams": beams,
        }
        compute = _Computation(model, tokenizer, text, name, masks, beams)
        items = [WorkItem(f"{source}-{target}") for source, target in directions]
        found = run_items(items, folder / name, settings=settings, compute=compute, restart=restart, progress=progress)
        results += [DirectionResult.from_json(content) for content in found]
    return results


def model_name(model: nn.Module) -> str:
    """Return the name or path a model was loaded from."""
    return str(getattr(model, "name_or_path", type(model).__name__))


def digest(text: ParallelText, directions: Sequence[Direction]) -> str:
    """Return a short hash of the lines of the languages of some directions."""
    codes = sorted({code for direction in directions for code in direction})
    return hashlib.sha256(" ".join(text.digest(code) for code in codes).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class _Computation:
    model: nn.Module
    tokenizer: Any
    text: ParallelText
    name: str
    masks: MaskSet | None
    beams: int

    def __call__(self, item: WorkItem) -> dict[str, Any]:
        source, target = item.id.split("-")
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
