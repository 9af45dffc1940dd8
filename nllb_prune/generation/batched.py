"""Decode batch by batch: for models that are not run through blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, cast

import torch
from torch import nn

from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.model.routing import routing
from nllb_prune.tokenization import batches_by_length

_CARRIED = "carried_decoder"


class BatchDecoder(Protocol):
    """Decodes a batch of sentences that use the same experts."""

    def groups(self, sentences: Sequence[Sentence], settings: SearchSettings) -> Iterable[Sequence[Sentence]]:
        """Return the sentences in groups of which any part can be a batch; all of them use the same experts."""

    def decode(self, sentences: Sequence[Sentence], settings: SearchSettings) -> list[list[Hypothesis]]:
        """Return the hypotheses of each, best first."""


def carry_decoder(model: nn.Module, decoder: BatchDecoder) -> None:
    """Give a model what decodes in place of blocks."""
    setattr(model, _CARRIED, decoder)


def carried_decoder(model: nn.Module) -> BatchDecoder | None:
    """Return what decodes in place of a model's blocks; `None` if nothing does."""
    return cast("BatchDecoder | None", getattr(model, _CARRIED, None))


@torch.inference_mode()
def decode_in_batches(
    model: nn.Module,
    decoder: BatchDecoder,
    sentences: Sequence[Sentence],
    settings: SearchSettings,
    done: dict[Hashable, list[Hypothesis]],
    *,
    rows: int,
    positions: int,
) -> None:
    """Decode sentences and add their hypotheses, best first, to `done` by key, batch by batch.

    A batch is of one group of the decoder and of one set of experts, so sentences of several take more batches than in
    the loop. A stack without a mask in `Sentence.keep` uses all experts, or the mask that is set on the model.
    """
    for same_experts in _by_experts(sentences):
        keep = {name: rows_kept.unsqueeze(0) for name, rows_kept in same_experts[0].keep.items()}
        for alike in decoder.groups(same_experts, settings):
            lengths = [len(sentence.source) for sentence in alike]
            for batch in batches_by_length(lengths, positions=max(1, positions // settings.beams)):
                for first in range(0, len(batch), rows):
                    some = [alike[n] for n in batch[first : first + rows]]
                    with routing(model, masks=keep or None):
                        found = decoder.decode(some, settings)
                    done |= {sentence.key: each for sentence, each in zip(some, found, strict=True)}


def _by_experts(sentences: Sequence[Sentence]) -> Iterable[list[Sentence]]:
    groups: dict[tuple[tuple[str, int], ...], list[Sentence]] = {}
    for sentence in sentences:
        masks = tuple((name, id(tensor)) for name, tensor in sorted(sentence.keep.items()))
        groups.setdefault(masks, []).append(sentence)
    return groups.values()
