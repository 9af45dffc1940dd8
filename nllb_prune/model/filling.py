"""Each parameter of an assembled model is read into its place, and every tensor of the checkpoint is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.model.families import Family
from nllb_prune.model.placement import Placement
from nllb_prune.model.routing import ModelRouting
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.weights.checkpoint import Checkpoint


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """Read a tensor that must be there.

    Raises:
        UsageError: if it is not.
    """
    if name not in checkpoint:
        raise UsageError(f"The checkpoint must hold `{name}`, but does not; it is incomplete or of another model.")
    return checkpoint.tensor(name)


class Filler:
    """Reads each parameter of an assembled model into its place and accounts for every tensor of the checkpoint."""

    def __init__(
        self,
        family: Family,
        config: Any,
        checkpoint: Checkpoint,
        model: nn.Module,
        state: ModelRouting,
        *,
        dtype: torch.dtype,
        device: Placement,
        held: Mapping[str, ExpertMask] | None = None,
    ) -> None:
        self.family, self.checkpoint, self.model, self.state = family, checkpoint, model, state
        self.dtype, self.device = dtype, device
        self.held = held  # experts that the checkpoint may hold, all by default
        self.groups = family.tied(config)
        self.used: set[str] = set()

    def fill(self) -> None:
        """Fill experts, routers, dense parameters and buffers.

        Raises:
            UsageError: if a tensor is missing, unexpected or of another shape.
        """
        sparse: set[str] = set()
        for stack in self.state.spec.stacks:
            for number, layer in enumerate(stack.layers):
                path = self.family.sparse_path(stack.name, layer)
                held = range(stack.experts) if self.held is None else self.held[stack.name][number]
                self._fill_sparse(path, held)
                sparse.update(name for name, _ in self.model.named_parameters() if name.startswith(path + "."))
        self._fill_dense(sparse)
        self._fill_buffers()
        self._refuse_unexpected()

    def _fill_sparse(self, path: str, held: Iterable[int]) -> None:
        layer = self.model.get_submodule(path)
        assert isinstance(layer, SparseFfn)
        for parameter, name in self.family.router_tensors(path).items():
            place = getattr(layer, parameter)
            if place is not None:
                # rounded as the other weights are, then held in float32: what transformers' routers do
                self._copy(name, place, through=self.dtype)
        for slot, expert in enumerate(layer.bank.expert_ids):
            for parameter, name in self.family.expert_tensors(path, expert).items():
                for suffix, place in layer.bank.places(parameter).items():
                    self._copy(name + suffix, getattr(layer.bank, place)[slot])
        for expert in held:
            for parameter, name in self.family.expert_tensors(path, expert).items():
                self.used.update(name + suffix for suffix in layer.bank.places(parameter))  # dropped, not unexpected

    def _copy(self, name: str, place: Tensor, *, through: torch.dtype | None = None) -> None:
        tensor = self._take(name, place.shape)
        if tensor.is_floating_point() != place.is_floating_point():
            raise UsageError(f"`{name}` must be of {place.dtype}, or convert to it, but is of {tensor.dtype} instead.")
        place.copy_(tensor if through is None else tensor.to(through))

    def _take(self, name: str, shape: torch.Size) -> Tensor:
        tensor = read_tensor(self.checkpoint, name)
        if tensor.shape != shape:
            raise UsageError(f"`{name}` must have the shape {tuple(shape)}, but has {tuple(tensor.shape)} instead.")
        self.used.add(name)
        return tensor

    def _fill_dense(self, sparse: set[str]) -> None:
        tied = {name: group for group in self.groups for name in group}
        shared: dict[tuple[str, ...], nn.Parameter] = {}
        for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            if name in sparse:
                continue
            group = tied.get(name, (name,))
            if group not in shared:
                stored = next((member for member in group if member in self.checkpoint), group[0])
                tensor = self._take(stored, parameter.shape).to(
                    device=self.device.of(name), dtype=self.dtype, copy=True
                )
                shared[group] = nn.Parameter(tensor, requires_grad=False)
                self.used.update(group)
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._parameters[leaf] = shared[group]

    def _fill_buffers(self) -> None:
        """Compute the buffers that no checkpoint holds: tables of positions."""
        for path, module in self.model.named_modules():
            for leaf, buffer in list(module._buffers.items()):
                if buffer is None or not buffer.is_meta or not hasattr(module, "get_embedding"):
                    continue
                table = cast(Any, module).get_embedding(*buffer.shape, module.padding_idx)
                module._buffers[leaf] = table.to(device=self.device.of(path), dtype=self.dtype)

    def _refuse_unexpected(self) -> None:
        unexpected = [n for n in self.checkpoint if n not in self.used and not n.endswith(self.family.ignored)]
        if unexpected:
            raise UsageError(
                f"The checkpoint must hold only tensors of a {self.family.model_type} model, but holds "
                f"{len(unexpected)} others, first `{sorted(unexpected)[0]}`."
            )
