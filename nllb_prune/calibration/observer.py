"""Hears what the sparse layers do and passes it to the collectors of each stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nllb_prune.calibration.collectors import COLLECTORS, PARTS, Call, Sizes
from nllb_prune.calibration.fields import ONCE, collected, fields_of
from nllb_prune.calibration.tables import CLASSES, Table
from nllb_prune.model.routing import RoutedTokens
from nllb_prune.model.spec import ModelSpec


class StatisticsObserver:
    """Collects one table of each stack.

    Set `classes[stack]` to the class of every position of the next call, an index into `PARTS`, ``(rows, length)``, and
    `ids[stack]` to the token it reads, before making it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        collect: Iterable[str] = ("core",),
        sizes: Sizes | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        groups = [name for name in collected(collect) if name != ONCE]
        sizes = sizes or Sizes(vocabulary=0, d_model=0, seed=0)
        self._collectors = {
            stack.name: [COLLECTORS[name](stack, device, sizes) for name in groups] for stack in spec.stacks
        }
        self._groups, self._fields = groups, fields_of(groups)
        self.wants_outputs = any(each.wants_outputs for each in next(iter(self._collectors.values())))
        self.classes: dict[str, Tensor] = {}
        self.ids: dict[str, Tensor] = {}

    @torch.no_grad()
    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Add a call of a sparse layer."""
        call = self._call(stack, layer, routed)
        for collector in self._collectors[stack]:
            collector.observe(call)

    def observe_outputs(self, stack: str, layer: int, routed: RoutedTokens, values: Tensor, order: Tensor) -> Tensor:
        """Add what the experts computed."""
        call = self._call(stack, layer, routed)
        for collector in self._collectors[stack]:
            if collector.wants_outputs:
                values = collector.observe_outputs(call, values, order)
        return values

    def _call(self, stack: str, layer: int, routed: RoutedTokens) -> Call:
        parts, ids = self.classes[stack].flatten(), self.ids[stack].flatten()
        if routed.positions is not None:
            parts, ids = parts[routed.positions], ids[routed.positions]
        return Call(layer, routed, parts, ids)

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that tell how far it is."""
        return {
            f"{stack}/{group}/{name}": tensor
            for stack, collectors in self._collectors.items()
            for group, collector in zip(self._groups, collectors, strict=True)
            for name, tensor in collector.state().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the state of an observer of the same model and groups."""
        for stack, collectors in self._collectors.items():
            for group, collector in zip(self._groups, collectors, strict=True):
                start = f"{stack}/{group}/"
                own = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
                collector.restore(own)

    def tables(self) -> dict[str, Table]:
        """Return what was collected so far by stack, position classes in the order of `CLASSES`."""
        return {name: self._table(name) for name in self._collectors}

    def _table(self, stack: str) -> Table:
        arrays: Table = {}
        for collector in self._collectors[stack]:
            arrays |= collector.table()
        joined = {
            name: _by_class(arrays[name], stack, largest=field.join == "largest")
            if field.axes[0] == "class"
            else arrays[name].copy()
            for name, field in self._fields.items()
        }
        if "sample_class" in joined:
            joined["sample_class"] = np.asarray(_first_class(stack))[arrays["sample_class"]]
        return joined


def _by_class(array: NDArray[np.generic], stack: str, *, largest: bool) -> NDArray[np.generic]:
    """Turn the axis of parts, which do not overlap, into that of classes, which do."""
    joined = [array[m].max(0) if largest else array[m].sum(0) for m in _members(stack)]
    return np.stack(joined)


def _members(stack: str) -> list[list[int]]:
    """Return, for each class of `CLASSES`, the parts it consists of."""
    parts = PARTS[stack]
    consists = {"all": parts, "text": ("inner", "end") if stack == "decoder" else ("inner",)}
    return [[parts.index(part) for part in consists.get(name, (name,))] for name in CLASSES[stack]]


def _first_class(stack: str) -> list[int]:
    """Return the narrowest class of each part, as an index of `CLASSES`."""
    return [CLASSES[stack].index("text" if part == "inner" else part) for part in PARTS[stack]]
