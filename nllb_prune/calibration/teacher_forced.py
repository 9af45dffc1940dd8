"""One teacher-forced pass: given targets go through the decoder, the observer counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nllb_prune.calibration.collectors import PARTS
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.model.routing import routing
from nllb_prune.model.teacher_forcing import BATCH_POSITIONS, IGNORED, forced_batch, forced_states
from nllb_prune.tokenization import batches_by_length

__all__ = ["BATCH_POSITIONS", "IGNORED", "decoder_classes", "encoder_classes", "observe_pairs", "token_loss"]


def observe_pairs(
    model: Any,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    observer: StatisticsObserver,
    *,
    masks: Mapping[str, Tensor] | None = None,
    backward: bool = False,
) -> None:
    """Run pairs of sentences through the model, observed.

    Args:
        model: From `load_model`.
        sources: Tokens with the source language and `</s>`.
        targets: Tokens with the target language and `</s>`, which the decoder is to predict.
        observer: Is told what the sparse layers do.
        masks: Experts that may be used, as `routing` takes them.
        backward: Also compute the gradient of the summed token loss.
    """
    lengths = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
    with torch.enable_grad() if backward else torch.inference_mode():
        for group in batches_by_length(lengths, positions=BATCH_POSITIONS):
            states, labels = _decoder_states(
                model, [sources[n] for n in group], [targets[n] for n in group], observer, masks
            )
            if backward:
                token_loss(model, states, labels).backward()  # type: ignore[no-untyped-call]


def _decoder_states(
    model: Any,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    observer: StatisticsObserver,
    masks: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Return the last states of the decoder for a batch and the labels of its positions."""
    end = model.config.eos_token_id
    batch = forced_batch(model, sources, targets)
    observer.classes = {"encoder": encoder_classes(batch.source, end), "decoder": decoder_classes(batch.labels, end)}
    observer.ids = {"encoder": batch.source, "decoder": batch.decoder_input}
    with routing(model, masks=masks, observer=observer):
        return forced_states(model, batch), batch.labels


def token_loss(model: Any, states: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of the labels ``(rows, length)``, in float32."""
    chosen = labels.ne(IGNORED)
    logits = model.get_output_embeddings()(states[chosen]).float()
    return functional.cross_entropy(logits, labels[chosen], reduction="sum")


def encoder_classes(source: Tensor, end: int) -> Tensor:
    """Return the class of each encoder position ``(rows, length)``: the code, the words, `</s>`."""
    parts = PARTS["encoder"]
    classes = torch.full_like(source, parts.index("inner"))
    classes[source == end] = parts.index("end")
    classes[:, 0] = parts.index("language")
    return classes


def decoder_classes(labels: Tensor, end: int) -> Tensor:
    """Return the class of each decoder position ``(rows, length)``, by the label it predicts and what it reads."""
    parts = PARTS["decoder"]
    classes = torch.full_like(labels, parts.index("inner"))
    classes[:, 1:2] = parts.index("language")
    classes[labels == end] = parts.index("end")
    classes[:, 0] = parts.index("start")
    return classes
