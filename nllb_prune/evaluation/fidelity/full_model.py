"""The full model on the text of a direction, kept so that many masks can be measured against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.fidelity.distributions import Predictions, compare_distributions
from nllb_prune.evaluation.fidelity.fidelity import COLUMNS, Fidelity
from nllb_prune.evaluation.scores.metrics import check_aligned
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.routing import mask_rows, routing, routing_of
from nllb_prune.model.teacher_forcing import (
    BATCH_POSITIONS,
    IGNORED,
    ForcedBatch,
    decoder_states,
    encoder_states,
    forced_batch,
)
from nllb_prune.tokenization import batches_by_length, encode

ENCODER = "encoder"
"""Name of the stack whose states serve again."""


@dataclass(frozen=True, slots=True)
class FullDirection:
    """The full model on the sentences of one direction.

    It keeps states, not distributions, in main memory: the decoder's of every token, and the encoder's as they were
    last, which serve again while the encoder's mask stays. That is (source + target tokens) x d_model numbers of the
    model's dtype: 200 sentences of 35 tokens a side with a d_model of 2,048 in bfloat16 are 57 MB.
    """

    model: Any
    direction: Direction
    sentences: int
    _batches: tuple[_Batch, ...]

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, sources: Sequence[str], references: Sequence[str], *, source: str, target: str
    ) -> FullDirection:
        """Run the full model; arguments as those of `fidelity.fidelity`."""
        check_aligned(sources=sources, references=references)
        _check_full(model)
        inputs, targets = encode(tokenizer, sources, source), encode(tokenizer, references, target)
        lengths = [max(len(i), len(t)) for i, t in zip(inputs, targets, strict=True)]
        groups = batches_by_length(lengths, positions=BATCH_POSITIONS)
        batches = (_full(model, [(n, inputs[n], targets[n]) for n in group]) for group in groups)
        return cls(model, (source, target), len(sources), tuple(batches))

    def measure(self, masks: MaskSet) -> Fidelity:
        """Return the fidelity of the model within the masks of this direction."""
        masks.check_model(routing_of(self.model).spec)
        _check_full(self.model)
        device = next(self.model.parameters()).device
        rows = mask_rows(masks, [self.direction], device=device)
        table = torch.zeros(self.sentences, len(COLUMNS), dtype=torch.float64)
        for batch in self._batches:
            states = _states(self.model, batch.inputs, rows, batch.encoded)
            table[list(batch.sentences)] = compare_distributions(
                self.model, batch.predictions, full=batch.states, masked=states, rows=len(batch.sentences)
            )
        return Fidelity(table.numpy())


@dataclass(slots=True)
class _Encoded:
    """The last states of the encoder for a batch, and the mask that they were made within."""

    mask: Tensor | None = None
    states: Tensor | None = None

    def within(self, model: Any, inputs: ForcedBatch, mask: Tensor | None) -> Tensor:
        """Return the states within a mask ``(1, layers, experts)``, or with all experts."""
        if mask is not None and bool(mask.all()):
            mask = None
        if self.states is None or not _same(mask, self.mask):
            states = encoder_states(model, inputs)
            self.mask, self.states = mask, states.cpu()
            return states
        return self.states.to(inputs.source.device)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


@dataclass(frozen=True, slots=True)
class _Batch:
    sentences: tuple[int, ...]
    inputs: ForcedBatch
    predictions: Predictions
    states: Tensor
    """Of the full model, at the predictions ``(tokens, d_model)``."""
    encoded: _Encoded


def _full(model: Any, pairs: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> _Batch:
    numbers, sources, targets = zip(*pairs, strict=True)
    inputs, encoded = forced_batch(model, sources, targets), _Encoded()
    predictions = Predictions(labels=inputs.labels[_counted(inputs)], rows=_counted(inputs).nonzero()[:, 0])
    return _Batch(numbers, inputs, predictions, _states(model, inputs, None, encoded).cpu(), encoded)


def _states(model: Any, inputs: ForcedBatch, masks: Mapping[str, Tensor] | None, encoded: _Encoded) -> Tensor:
    """Return the last states of the decoder at the tokens ``(tokens, d_model)``."""
    with torch.inference_mode(), routing(model, masks=masks):
        memory = encoded.within(model, inputs, (masks or {}).get(ENCODER))
        return decoder_states(model, inputs, memory)[_counted(inputs)]


def _counted(inputs: ForcedBatch) -> Tensor:
    """Return where a token is predicted ``(rows, positions)``: not at padding, not where the code is."""
    counted = inputs.labels.ne(IGNORED)
    counted[:, 0] = False
    return counted


def _check_full(model: Any) -> None:
    state = routing_of(model)
    if state.resident is not None or any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError(
            "`model` must have all its experts and no masks set, but is pruned or masked instead; "
            "load it without masks, or clear them."
        )
