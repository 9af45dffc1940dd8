"""What the pruner must know of a model: its stacks of sparse layers, how they route, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

KeyedBy = Literal["source", "target", "direction"]

_NORM_TOLERANCE = 1e-2  # relative; rounding a router row to bfloat16 moves its norm by less than 4e-3


@dataclass(frozen=True, slots=True)
class Stack:
    """The sparse layers of one stack, in order, with the same number of experts each."""

    name: str
    """`encoder` or `decoder`; a decoder-only model has one stack."""
    keyed_by: KeyedBy
    """Which language a mask of this stack belongs to."""
    layers: tuple[int, ...]
    """Index of each sparse layer among the layers of the stack."""
    experts: int
    """Experts of each sparse layer."""

    @property
    def total(self) -> int:
        """Experts of the whole stack."""
        return len(self.layers) * self.experts

    def key(self, source: str, target: str) -> str:
        """Return the key of this stack's statistics and masks for a direction."""
        return {"source": source, "target": target, "direction": f"{source}-{target}"}[self.keyed_by]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"name": self.name, "keyed_by": self.keyed_by, "layers": list(self.layers), "experts": self.experts}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Stack:
        """Rebuild from `to_json`."""
        return cls(content["name"], content["keyed_by"], tuple(content["layers"]), content["experts"])


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tells whether masks and statistics belong to a model, whatever its dtype and file format.

    The table of sparse layers must be equal, the norms of the router rows equal to 1e-2 relative.
    """

    table: str
    router_norms: tuple[float, ...]
    """Euclidean norm of each router row, layer by layer, experts in order, four significant digits."""

    @classmethod
    def of(cls, stacks: Iterable[Stack], router_norms: Iterable[float]) -> Fingerprint:
        """Fingerprint a model from its stacks and the norms of its router rows."""
        table = json.dumps([stack.to_json() for stack in stacks], sort_keys=True)
        return cls(hashlib.sha256(table.encode()).hexdigest()[:16], tuple(float(f"{n:.4g}") for n in router_norms))

    def matches(self, other: Fingerprint) -> bool:
        """Return whether both are fingerprints of the same model."""
        if self.table != other.table or len(self.router_norms) != len(other.router_norms):
            return False
        pairs = zip(self.router_norms, other.router_norms, strict=True)
        return all(abs(a - b) <= _NORM_TOLERANCE * max(abs(a), abs(b)) for a, b in pairs)

    @property
    def short(self) -> str:
        """A short name to show: a hash of all of it. Rounded copies of a model may differ in it and still match."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"table": self.table, "router_norms": list(self.router_norms)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Fingerprint:
        """Rebuild from `to_json`."""
        return cls(content["table"], tuple(content["router_norms"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """How large the parts of a model are, in parameters; tied ones count once."""

    dense: int
    """All but routers and experts."""
    router: int
    """Held in float32, whatever the rest is."""
    expert: Mapping[str, int]
    """One expert, by stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model as the pruner sees it; a dense model has no stacks."""

    family: str
    stacks: tuple[Stack, ...]
    top_k: int
    """Experts that run for a token."""
    output_scale: float
    """Factor on the sum of the experts' outputs (NLLB: 1 - `moe_token_dropout`)."""
    score_function: Literal["softmax"] = "softmax"
    renormalise: bool = True
    """Whether the top-k probabilities are divided by their sum."""
    router_bias: bool = False
    expert_kind: Literal["two-matrices"] = "two-matrices"
    activation: str = "relu"
    shared_experts: int = 0
    fingerprint: Fingerprint | None = None
    """Set once the router weights are read."""
    parameters: ParameterCounts | None = None
    """Set once the model is loaded."""

    @property
    def experts(self) -> int:
        """Experts of the whole model."""
        return sum(stack.total for stack in self.stacks)

    def stack(self, name: str) -> Stack:
        """Return the stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)
