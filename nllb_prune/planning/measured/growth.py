"""Growth: a mask gets the next experts in the order of the criterion."""

from __future__ import annotations

from collections.abc import Sequence

from nllb_prune.expert_mask import ExpertMask

Order = Sequence[Sequence[int]]
"""Ids of the experts that each layer can keep, best first."""


def grown(mask: ExpertMask, order: Order, number: int, *, base: ExpertMask) -> ExpertMask:
    """Return a mask with so many more experts, or with all there are.

    Layers get them in proportion to what they keep in `base`, in the order of Webster, ties to the first.
    """
    waiting = [[each for each in ids if each not in kept] for ids, kept in zip(order, mask, strict=True)]
    chosen = [list(ids) for ids in mask]
    for _ in range(min(number, sum(map(len, waiting)))):
        layers = [layer for layer, left in enumerate(waiting) if left]
        neediest = min(layers, key=lambda layer: (len(chosen[layer]) + 0.5) / len(base[layer]))
        chosen[neediest].append(waiting[neediest].pop(0))
    return tuple(tuple(sorted(ids)) for ids in chosen)
