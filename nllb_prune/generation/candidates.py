"""The best continuations of each sentence, from the logits of its beams."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_continuations(logits: Tensor, before: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most probable continuations, best first.

    Args:
        logits: ``(rows, beams, vocabulary)``; they may be overwritten.
        before: Log-probability of each beam ``(rows, beams)``.
        count: Continuations of a row, at most twice the beams.

    Returns:
        Log-probability, token and beam continued, each ``(rows, count)``.
    """
    logits = logits.float()
    values, tokens = _top(logits, count)  # a beam's best are the same before and after normalising
    values = values.sub_(_log_normaliser(logits)).add_(before.unsqueeze(-1))
    if logits.shape[1] == 1:
        return values[:, 0], tokens[:, 0], tokens.new_zeros(tokens.shape[0], count)
    scores, index = values.flatten(1).topk(count)
    return scores, tokens.flatten(1).gather(1, index), index // count


def _log_normaliser(logits: Tensor) -> Tensor:
    # on a CPU torch's log_softmax runs twice as fast as its logsumexp, and in place it touches no new memory
    first = logits[..., :1].clone()
    return first - torch.log_softmax(logits, -1, out=logits)[..., :1]


def _top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest `count` logits of each beam and their tokens, best first ``(rows, beams, count)``.

    On a CPU the vocabulary is cut into about its square root of pieces: the best are in the `count` pieces with the
    largest maxima, and a maximum is several times quicker there than a search.
    """
    vocabulary = logits.shape[-1]
    size = math.isqrt(vocabulary)
    pieces = vocabulary // size
    if logits.device.type != "cpu" or pieces <= count:
        return logits.topk(count, dim=-1)
    whole = logits[..., : pieces * size].view(*logits.shape[:2], pieces, size)
    chosen = whole.amax(-1).topk(count, dim=-1).indices.unsqueeze(-1)  # (rows, beams, count, 1)
    tail = torch.arange(pieces * size, vocabulary)  # what is left over
    tokens = torch.cat([(chosen * size + torch.arange(size)).flatten(2), tail.expand(*logits.shape[:2], -1)], dim=-1)
    values, index = logits.gather(2, tokens).topk(count, dim=-1)
    return values, tokens.gather(2, index)
