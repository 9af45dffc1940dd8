"""Decode a list of sentences through the loop: the longest first, the places of finished ones filled again."""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Hashable, Sequence

import torch
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.generation.batched import carried_decoder, decode_in_batches
from nllb_prune.generation.loop import DecodingLoop, Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.generation.through_transformers import ThroughTransformers
from nllb_prune.model.blocks import Blocks

POSITIONS = 2048
"""Source positions in flight times beams, by default."""
ROWS = 128
"""Sentences in flight at most, by default."""


def decode(
    model: nn.Module,
    blocks: Blocks | None,
    sentences: Sequence[Sentence],
    settings: SearchSettings,
    *,
    rows: int = ROWS,
    positions: int = POSITIONS,
) -> dict[Hashable, list[Hypothesis]]:
    """Decode sentences and return their hypotheses, best first, by key.

    When memory runs out, it goes on once with half of the rows and positions, and warns.

    Args:
        model: Whose device is used.
        blocks: Of the model; without them the decoder that it carries decodes, or transformers' `generate`.
        sentences: With keys of their own.
        settings: How to search.
        rows: Sentences in flight at most.
        positions: Source positions in flight times beams, at most; a sentence longer than that goes alone.

    Raises:
        UsageError: when memory runs out again.
    """
    device = next(model.parameters()).device
    done: dict[Hashable, list[Hypothesis]] = {}
    halved = False
    while True:
        waiting = [sentence for sentence in sentences if sentence.key not in done]
        try:
            if blocks is None:
                decoder = carried_decoder(model) or ThroughTransformers(model)
                decode_in_batches(model, decoder, waiting, settings, done, rows=rows, positions=positions)
            else:
                loop = DecodingLoop(blocks, settings, device=device)
                _run(loop, deque(sorted(waiting, key=_longest_first)), done, rows=rows, positions=positions)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            rows = min(rows, len(waiting))
            if halved or rows == 1:
                raise UsageError(
                    f"The memory of {device} must hold the model and {rows} sentences of up to "
                    f"{max(len(sentence.source) for sentence in waiting)} tokens with {settings.beams} beams, but does "
                    "not; give fewer rows, a smaller dtype or masks."
                ) from None
        else:
            return done
        halved, rows, positions = True, rows // 2, max(1, positions // 2)
        warnings.warn(f"memory ran out on {device}; going on with {rows} sentences at a time", stacklevel=2)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _longest_first(sentence: Sentence) -> int:
    return -len(sentence.source)  # sorting is stable: ties keep their order


def _run(
    loop: DecodingLoop,
    waiting: deque[Sentence],
    done: dict[Hashable, list[Hypothesis]],
    *,
    rows: int,
    positions: int,
) -> None:
    while waiting or len(loop):
        if waiting:
            longest = max(loop.longest, len(waiting[0].source))
            places = min(rows, max(1, positions // (longest * loop.settings.beams)))
            if len(loop) <= places // 2:  # encoding few at a time would cost more than empty places
                joining = [waiting.popleft() for _ in range(min(places - len(loop), len(waiting)))]
                done |= loop.add(joining)
        done |= loop.step()


def _out_of_memory(error: BaseException) -> bool:
    # torch has no class of its own for the CPU's allocator and CUDA's libraries
    told = any(words in str(error) for words in ("can't allocate memory", "STATUS_ALLOC_FAILED"))
    return told or isinstance(error, (torch.OutOfMemoryError, MemoryError))
