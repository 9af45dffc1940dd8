"""`Candidates`: the experts of one mask in the order in which a budget takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nllb_prune.masks import ExpertMask
from nllb_prune.planning.budget import Counts
from nllb_prune.planning.evidence import FloatArray
from nllb_prune.planning.scopes import Scope, by_rank
from nllb_prune.planning.selection import BoolArray, best_first, move_first, take


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The experts of one mask of a stack; arrays are (layers, experts)."""

    order: NDArray[np.intp]
    """Ids, best first; those that cannot be kept last."""
    keys: FloatArray
    """Key of each slot, rising in each layer; infinite where no expert can take it."""
    protected: BoolArray | None = None
    """By id: experts to keep before all others."""

    @classmethod
    def of(
        cls,
        scores: FloatArray,
        scope: Scope,
        *,
        weights: FloatArray,
        allowed: BoolArray | None = None,
        protected: BoolArray | None = None,
    ) -> Candidates:
        """Order experts by score.

        Args:
            scores: (layers, experts), higher is kept.
            scope: gives the keys.
            weights: of the layers, for scopes that use them.
            allowed: by id, experts that can be kept; all by default.
            protected: by id, experts to keep before all others.
        """
        order = best_first(scores)
        if allowed is None:
            return cls(order, scope.keys(np.take_along_axis(scores, order, axis=1), weights), protected)
        order = move_first(order, allowed)
        possible = np.take_along_axis(allowed, order, axis=1)
        ranked = np.where(possible, np.take_along_axis(scores, order, axis=1), 0.0)
        keys = np.where(possible, scope.keys(ranked, weights), np.inf)
        return cls(order, keys, None if protected is None else protected & allowed)

    @classmethod
    def shared(cls, parts: Sequence[Candidates], *, level: bool) -> Candidates:
        """Return candidates for one mask that all parts share: its first k are the union of the best of each part.

        Experts come by their smallest key over the parts; ties by the sum of their keys, then by id.

        Args:
            parts: candidates of one stack for different languages.
            level: whether layers get slots by rank, whatever the keys.
        """
        entries = np.stack([_by_id(part) for part in parts])  # (parts, layers, experts)
        first = entries.min(axis=0)
        order = np.lexsort((entries.sum(axis=0), first), axis=-1)
        keys = np.take_along_axis(first, order, axis=1)
        if level:
            keys = np.where(np.isfinite(keys), by_rank(keys, keys[:, 0]), np.inf)
        protected = [part.protected for part in parts if part.protected is not None]
        return cls(order, keys, np.logical_or.reduce(protected) if protected else None)

    def slots(self, minimum: int) -> FloatArray:
        """Return the keys of the slots, the first so many of each layer before those of any layer."""
        keys = self.keys.copy()
        keys[:, :minimum] = -np.inf
        return keys

    def available(self) -> Counts:
        """Return how many experts of each layer can be kept."""
        return tuple(np.isfinite(self.keys).sum(axis=1).tolist())

    def possible(self) -> list[list[int]]:
        """Return the ids that each layer can keep, in the order it takes them."""
        order = self._taken()
        return [ids[:count].tolist() for ids, count in zip(order, self.available(), strict=True)]

    def too_protected(self, counts: Counts) -> bool:
        """Return whether a layer protects more experts than it keeps."""
        return self.protected is not None and bool((self.protected.sum(axis=1) > np.asarray(counts)).any())

    def select(self, counts: Counts) -> ExpertMask:
        """Return the experts to keep: protected ones, then the best."""
        return take(self._taken(), counts)

    def _taken(self) -> NDArray[np.intp]:
        return self.order if self.protected is None else move_first(self.order, self.protected)


def _by_id(part: Candidates) -> FloatArray:
    """Return the key at which each expert comes in, by id."""
    entries = np.empty_like(part.keys)
    np.put_along_axis(entries, part.order, part.keys, axis=1)
    return entries
