"""The tensors that a checkpoint of a model must hold, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nllb_prune.expert_mask import ExpertMask
from nllb_prune.model.assembly import assemble
from nllb_prune.model.families import Family
from nllb_prune.model.spec import ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTensor:
    """Which part of which expert a tensor is."""

    stack: str
    layer: int
    """Number of the sparse layer in its stack."""
    expert: int
    matrix: bool
    """Whether it is a weight, not a bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTensors:
    """What a checkpoint must hold, and what it may hold besides."""

    dense: Mapping[str, Shape]
    """All names of tied tensors among them."""
    tied: tuple[tuple[str, ...], ...]
    """Groups of names of one tensor: any of them will do."""
    routers: Mapping[str, tuple[str, int]]
    """Stack and number of the sparse layer of each router's rows."""
    router_shapes: Mapping[str, Shape]
    """Of rows and biases."""
    experts: Mapping[str, ExpertTensor]
    """Of all experts, kept or not."""
    expert_shapes: Mapping[str, Shape]
    """Of those that are kept."""
    ignored: tuple[str, ...]
    """Ends of names that may be there and are not needed."""

    def shape(self, name: str) -> Shape | None:
        """Return the shape a tensor must have; `None` for one that is not wanted."""
        return next((each[name] for each in self._wanted if name in each), None)

    def wanted(self, name: str) -> bool:
        """Return whether a tensor is to be read."""
        return any(name in each for each in self._wanted)

    def known(self, name: str) -> bool:
        """Return whether a tensor may be there."""
        return self.wanted(name) or name in self.experts or name.endswith(self.ignored)

    def missing(self, names: Collection[str]) -> list[str]:
        """Return what must be there and is not, one name for each tied group."""
        tied = {name for group in self.tied for name in group}
        absent = [name for each in self._wanted for name in each if name not in names and name not in tied]
        return sorted([*absent, *(group[0] for group in self.tied if not any(name in names for name in group))])

    @property
    def _wanted(self) -> tuple[Mapping[str, Shape], ...]:
        return self.dense, self.router_shapes, self.expert_shapes


def expected_tensors(
    family: Family, config: Any, spec: ModelSpec, kept: Mapping[str, ExpertMask] | None
) -> ExpectedTensors:
    """Return the tensors of a model that keeps some experts, or all."""
    model, _ = assemble(family, spec, config, kept=kept, dtype=torch.float32, device=torch.device("meta"))
    found = _Sparse()
    for stack in spec.stacks:
        for number, layer in enumerate(stack.layers):
            path = family.sparse_path(stack.name, layer)
            found.add(family, path, model.get_submodule(path), (stack.name, number))
    every = model.named_parameters(remove_duplicate=False)
    sparse = tuple(f"{path}." for path in found.paths)
    return ExpectedTensors(
        dense={name: tuple(parameter.shape) for name, parameter in every if not name.startswith(sparse)},
        tied=family.tied(config),
        routers=found.routers,
        router_shapes=found.router_shapes,
        experts=found.experts,
        expert_shapes=found.expert_shapes,
        ignored=family.ignored,
    )


@dataclass(frozen=True, slots=True)
class _Sparse:
    """The tensors of the sparse layers seen so far."""

    paths: list[str] = field(default_factory=list)
    routers: dict[str, tuple[str, int]] = field(default_factory=dict)
    router_shapes: dict[str, Shape] = field(default_factory=dict)
    experts: dict[str, ExpertTensor] = field(default_factory=dict)
    expert_shapes: dict[str, Shape] = field(default_factory=dict)

    def add(self, family: Family, path: str, module: Any, place: tuple[str, int]) -> None:
        """Add those of a layer."""
        self.paths.append(path)
        for parameter, name in family.router_tensors(path).items():
            rows = getattr(module, parameter)
            if rows is not None:
                self.router_shapes[name] = tuple(rows.shape)
            if parameter == "router_weight":
                self.routers[name] = place
        stack, layer = place
        for expert in range(module.bank.experts):
            for parameter, name in family.expert_tensors(path, expert).items():
                shape = tuple(getattr(module.bank, parameter).shape[1:])
                self.experts[name] = ExpertTensor(stack=stack, layer=layer, expert=expert, matrix=len(shape) > 1)
                if expert in module.bank.expert_ids:
                    self.expert_shapes[name] = shape
