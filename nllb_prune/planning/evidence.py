"""`Evidence`: what a criterion knows of the experts of a stack, as means and totals over tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.statistics import Table
from nllb_prune.errors import UsageError

FloatArray = NDArray[np.float64]

_FIELDS = fields_of(GROUPS)
_GROUP = {field.name: name for name, group in GROUPS.items() for field in group.fields}
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)  # set in each byte


class Evidence:
    """What is known of the experts of a stack for one mask; arrays (layers, experts) unless they say otherwise.

    Several tables, those of the directions of a language, count the same whatever their size (arXiv 2212.09811): each
    statistic is the mean of the tables' own, and sums are taken as if all tables had the mean number of tokens. No
    tokens give zeros.

    Args:
        tables: one or more, of the same fields. They are not modified.
        top_k: how many experts a token is routed to.
        weights: the group `weights` of the stack, if it was collected.
        position: index of the position class, for fields that tell them apart; 0 is `all`.
        draw: names the scores of the criterion `random`.

    Raises:
        UsageError: on reading a statistic of a group that was not collected.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        top_k: int = 2,
        weights: Table | None = None,
        position: int = 0,
        draw: str = "",
    ) -> None:
        if not tables:
            raise UsageError("`tables` must be one or more, but is empty instead.")
        self.top_k, self.draw = top_k, draw
        self._parts = [_Part({**(weights or {}), **table}, top_k, position) for table in tables]
        self._everywhere = [_Part(part.table, top_k, 0) for part in self._parts]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and experts."""
        layers, experts = self._parts[0]("first").shape
        return layers, experts

    @property
    def top1(self) -> FloatArray:
        """Share of the tokens that rank the expert first."""
        return self._mean(lambda part: part("first") / part.some_tokens)

    @property
    def top2(self) -> FloatArray:
        """Share of the tokens that rank it first or second."""
        return self._mean(lambda part: (part("first") + part("second")) / part.some_tokens)

    @property
    def routed(self) -> FloatArray:
        """Share of the tokens routed to it: `top2`, or `top1` if tokens go to one expert."""
        return self._mean(lambda part: part.routed / part.some_tokens)

    @property
    def confidence(self) -> FloatArray:
        """Mean probability over the tokens that rank it first; 0 where there are none."""
        return self._mean(lambda part: part("p_first") / np.maximum(part("first"), 1.0))

    @property
    def mean(self) -> FloatArray:
        """Mean probability over all tokens."""
        return self._mean(lambda part: part("p_all") / part.some_tokens)

    @property
    def soft(self) -> FloatArray:
        """Sum of its probability over all tokens."""
        return self._sum("p_all")

    @property
    def soft_topk(self) -> FloatArray:
        """Sum of its probability over the tokens routed to it."""
        return self._sum("p_first") + (self._sum("p_second") if self.top_k > 1 else 0.0)

    @property
    def routing_mass(self) -> FloatArray:
        """Mean combining weight over all tokens, 0 for those that are not routed to it."""
        return self._mean(lambda part: part("gate") / part.some_tokens)

    @property
    def norm_mean(self) -> FloatArray:
        """Mean norm of its output over the tokens routed to it; 0 where there are none."""
        return self._mean(lambda part: part("norm") / part.some_routed)

    @property
    def norm_sum(self) -> FloatArray:
        """Sum of the norms of its outputs."""
        return self._sum("norm")

    @property
    def gate_norm_mean(self) -> FloatArray:
        """Mean norm of its output times combining weight over the tokens routed to it; 0 where there are none."""
        return self._mean(lambda part: part("gate_norm") / part.some_routed)

    @property
    def gate_norm_sum(self) -> FloatArray:
        """Sum of the norms of its outputs times combining weight."""
        return self._sum("gate_norm")

    @property
    def gate_norm_rms(self) -> FloatArray:
        """Root of the mean square of what `gate_norm_mean` is the mean of."""
        return self._mean(lambda part: np.sqrt(part("gate_norm_squared") / part.some_routed))

    @property
    def norm_max(self) -> FloatArray:
        """Largest norm of its output."""
        return self._mean(lambda part: part("norm_max"))

    @property
    def activation_max(self) -> FloatArray:
        """Largest absolute element of its output."""
        return self._mean(lambda part: part("activation_max"))

    @property
    def vocabulary(self) -> FloatArray:
        """Number of distinct token ids that were routed to it."""
        return self._mean(lambda part: _BITS[part.raw("token_ids")].sum(axis=2, dtype=np.int64))

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids that there are bits for."""
        size: int = self._parts[0].raw("token_ids").shape[2]
        return 8 * size

    @property
    def shared_ids(self) -> FloatArray:
        """Sum over the other experts of its layer of the number of distinct token ids that were routed to both."""
        return self._mean(lambda part: np.stack([_shared(layer) for layer in part.raw("token_ids")]))

    @property
    def routed_tokens(self) -> FloatArray:
        """Number of tokens routed to it in all position classes, as in the sums that do not tell classes apart."""
        return self._sum("first", everywhere=True) + (self._sum("second", everywhere=True) if self.top_k > 1 else 0.0)

    @property
    def together(self) -> FloatArray:
        """Number of tokens that go to both of two experts, (layers, experts, experts): symmetric, its diagonal 0."""
        ordered = self._sum("together", everywhere=True)  # first choice, second choice
        return ordered + ordered.transpose(0, 2, 1)

    @property
    def output_sum(self) -> FloatArray:
        """Sum of its outputs, (layers, experts, dimensions)."""
        return self._sum("output_sum", everywhere=True)

    @property
    def output_squared(self) -> FloatArray:
        """Sum of the squares of its outputs, (layers, experts, dimensions)."""
        return self._sum("output_squared", everywhere=True)

    @property
    def gradient_sum(self) -> FloatArray:
        """Sum of the gradients at its outputs, (layers, experts, dimensions)."""
        return self._sum("gradient_sum", everywhere=True)

    @property
    def gradient_squared(self) -> FloatArray:
        """Sum of the squares of the gradients at its outputs, (layers, experts, dimensions)."""
        return self._sum("gradient_squared", everywhere=True)

    @property
    def weight_norm(self) -> FloatArray:
        """Norm of all its weights."""
        return self._parts[0]("weight_norm")

    @property
    def weight_similarity(self) -> FloatArray:
        """Sum of the cosines of its weights with those of the other experts of its layer."""
        return self._parts[0]("weight_similarity")

    @property
    def router_norm(self) -> FloatArray:
        """Norm of its row of the router."""
        return self._parts[0]("router_norm")

    @property
    def stable_rank(self) -> FloatArray:
        """Stable rank of its matrices."""
        return self._parts[0]("stable_rank")

    def _mean(self, statistic: Callable[[_Part], NDArray[Any]]) -> FloatArray:
        """Return the unweighted mean over the tables of a statistic of each."""
        return np.asarray(np.mean([statistic(part) for part in self._parts], axis=0))

    def _sum(self, name: str, *, everywhere: bool = False) -> FloatArray:
        """Return the mean sum of a field, if all tables had the mean number of tokens; of one table the sum itself."""
        parts = self._everywhere if everywhere else self._parts
        tokens = float(np.mean([part.tokens for part in parts]))
        return np.asarray(np.mean([part(name) * (tokens / part.some_tokens) for part in parts], axis=0))


@dataclass(frozen=True, slots=True)
class _Part:
    """One table, read in one position class."""

    table: Table
    top_k: int
    position: int

    def __call__(self, name: str) -> FloatArray:
        """Return a copy of a field."""
        return self.raw(name).astype(np.float64)

    def raw(self, name: str) -> NDArray[Any]:
        """Return a field as it is."""
        if name not in self.table:
            raise UsageError(_missing(_GROUP[name], self.table))
        return self.table[name][self.position] if _FIELDS[name].axes[0] == "class" else self.table[name]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.raw("tokens"))

    @property
    def some_tokens(self) -> int:
        """Number of tokens, to divide by."""
        return max(self.tokens, 1)

    @property
    def routed(self) -> FloatArray:
        """Number of tokens routed to each expert."""
        return self("first") + self("second") if self.top_k > 1 else self("first")

    @property
    def some_routed(self) -> FloatArray:
        """Number of tokens routed to each expert, to divide by."""
        return np.maximum(self.routed, 1.0)


def _shared(ids: NDArray[np.uint8]) -> FloatArray:
    """Return for each row of bits (experts, bytes) how many of its ids the other rows have, added up."""
    has = np.unpackbits(ids, axis=1)  # (experts, ids)
    others = has.sum(axis=0, dtype=np.float64) - 1  # of those that have an id
    several = others > 0
    return np.asarray(has[:, several].astype(np.float64) @ others[several])


def _missing(group: str, table: Table) -> str:
    held = ", ".join(name for name in GROUPS if any(_GROUP.get(field) == name for field in table))
    return (
        f"`statistics` must hold the group {group} for this, but hold only {held}. "
        f"Calibrate again with `--collect {group}`."
    )
