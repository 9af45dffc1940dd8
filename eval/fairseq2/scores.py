"""`evaluate` with both backends: the full model, masks and a dense one, hypothesis by hypothesis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.fairseq2.common import DIRECTIONS, TEST
from nllb_prune.backends import BACKENDS, named_backend
from nllb_prune.evaluation.evaluate import evaluate
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.masks import MaskSet
from nllb_prune.model.source import embedded_masks


def study(work: Path, *, sentences: int) -> list[dict[str, Any]]:
    """Compare the results of each configuration."""
    ours, theirs = (_evaluated(name, work / name, sentences) for name in BACKENDS)
    return [_compared(ours, theirs, each) for each in ours.configurations]


def _evaluated(name: str, folder: Path, sentences: int) -> Evaluation:
    backend, masks = named_backend(name), MaskSet.load(embedded_masks())
    runs: dict[str, dict[str, MaskSet | None]] = {
        "mini": {"full": None, "masks 25 %": masks},
        "mini-dense": {"dense": None},
    }
    parts = [
        evaluate(
            backend.load_model(model), backend.load_tokenizer(model), TEST, DIRECTIONS, configurations,
            folder=folder, sentences=sentences,
        )
        for model, configurations in runs.items()
    ]  # fmt: skip
    return parts[0].joined(parts[1])


def _compared(ours: Evaluation, theirs: Evaluation, name: str) -> dict[str, Any]:
    pairs = [(ours.result(name, each), theirs.result(name, each)) for each in ours.directions]
    told: dict[str, Any] = {
        "configuration": name,
        "hypotheses": sum(one.sentences for one, _ in pairs),
        "equal": sum(a == b for one, two in pairs for a, b in zip(one.hypotheses, two.hypotheses, strict=True)),
        "chrF++": float(np.mean([one.scores["chrf"].value for one, _ in pairs])),
        "their chrF++": float(np.mean([two.scores["chrf"].value for _, two in pairs])),
        "log-probability": _largest(one.mean_log_probabilities - two.mean_log_probabilities for one, two in pairs),
    }
    measured = [(one.fidelity, two.fidelity) for one, two in pairs if one.fidelity and two.fidelity]
    if measured:
        told["fidelity"] = max(abs(one.value(name) - two.value(name)) for one, two in measured for name in one.values())
    return told


def _largest(differences: Any) -> float:
    return max(float(np.abs(each).max()) for each in differences)
