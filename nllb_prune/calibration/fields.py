"""What can be collected of a sparse layer: groups of fields, each an array with named axes that adds up exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nllb_prune.errors import UsageError

Axis = Literal["class", "layer", "expert", "other", "dimension", "byte", "sample"]
"""`other` is a second expert, `dimension` a width of the model, `byte` eight token ids, `sample` a kept token."""
Join = Literal["sum", "largest", "any", "sample", "same"]
"""How the arrays of two parts become one: added up, larger of both, bits of either, lowest priorities, or equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One array of a table."""

    name: str
    axes: tuple[Axis, ...]
    dtype: Literal["int64", "float64", "float32", "uint8"] = "int64"
    join: Join = "sum"
    bits: int = 0
    """Sums of floats are multiples of 2 ** -bits, so that float64 adds them without rounding up to 2 ** (53 - bits)."""
    signed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Fields that are collected together."""

    description: str
    fields: tuple[Field, ...]


_BY_CLASS: tuple[Axis, ...] = ("class", "layer", "expert")
_BY_EXPERT: tuple[Axis, ...] = ("layer", "expert")
_BY_DIMENSION: tuple[Axis, ...] = ("layer", "expert", "dimension")


def _count(name: str, axes: tuple[Axis, ...] = _BY_CLASS) -> Field:
    return Field(name=name, axes=axes)


def _sum(name: str, axes: tuple[Axis, ...] = _BY_CLASS, *, bits: int, signed: bool = False) -> Field:
    return Field(name=name, axes=axes, dtype="float64", bits=bits, signed=signed)


def _largest(name: str) -> Field:
    return Field(name=name, axes=_BY_CLASS, dtype="float64", join="largest")


def _weight(name: str, *, signed: bool = False) -> Field:
    return Field(name=name, axes=_BY_EXPERT, dtype="float64", join="same", signed=signed)


# Grids: probabilities to 4e-9 up to 2**25 tokens; norms and outputs to 1e-6 up to 8e9, squares to 6e-5 up to 5e11;
# gradients of the summed token loss, which are small, to 1e-11 up to 1e5.
_PROBABILITY, _OUTPUT, _SQUARE, _GRADIENT = 28, 20, 14, 36

GROUPS: dict[str, Group] = {
    "core": Group(
        description="tokens, ranks, probabilities and combining weights, by position class",
        fields=(
            _count("tokens", ("class",)),
            _count("first"),  # tokens that rank the expert first
            _count("second"),
            _count("rank"),  # sum of its rank among all experts, 1 the best
            _sum("p_first", bits=_PROBABILITY),  # of its probability, over the tokens that rank it first
            _sum("p_second", bits=_PROBABILITY),
            _sum("p_all", bits=_PROBABILITY),  # over all tokens
            _sum("gate", bits=_PROBABILITY),  # of its combining weight
        ),
    ),
    "norms": Group(
        description="norms of the experts' outputs f, alone and times the combining weight g, by position class",
        fields=(
            _sum("norm", bits=_OUTPUT),  # sum of |f|, Euclidean
            _sum("gate_norm", bits=_OUTPUT),  # of g |f|
            _sum("gate_norm_squared", bits=_SQUARE),  # of g^2 |f|^2
            _largest("norm_max"),  # largest |f|
            _largest("activation_max"),  # largest absolute element of f
        ),
    ),
    "vocabulary": Group(
        description="which token ids were routed to the expert, one bit an id",
        fields=(Field(name="token_ids", axes=(*_BY_EXPERT, "byte"), dtype="uint8", join="any"),),
    ),
    "coselection": Group(
        description="tokens that rank one expert first and the other second",
        fields=(_count("together", ("layer", "expert", "other")),),
    ),
    "dimensions": Group(
        description="sums and squares of each dimension of the experts' outputs",
        fields=(
            _sum("output_sum", _BY_DIMENSION, bits=_OUTPUT, signed=True),
            _sum("output_squared", _BY_DIMENSION, bits=_SQUARE),
        ),
    ),
    "gradients": Group(
        description="sums and squares of each dimension of the token loss's gradient at the experts' outputs (slow)",
        fields=(
            _sum("gradient_sum", _BY_DIMENSION, bits=_GRADIENT, signed=True),
            _sum("gradient_squared", _BY_DIMENSION, bits=_GRADIENT),
        ),
    ),
    "reservoir": Group(
        description="inputs of the layers at a random sample of tokens",
        fields=(
            Field(name="sample_priority", axes=("sample",), join="sample"),
            Field(name="sample_class", axes=("sample",), join="sample"),
            Field(
                name="sample_inputs",
                axes=("sample", "layer", "dimension"),
                dtype="float32",
                join="sample",
                signed=True,
            ),
        ),
    ),
    "weights": Group(
        description="norms, similarity and stable rank of the weights, the same for every language",
        fields=(
            _weight("weight_norm"),  # Euclidean norm of all weights of the expert
            _weight("weight_similarity", signed=True),  # sum of the cosines of its weights with the other experts'
            _weight("router_norm"),  # Euclidean norm of its row of the router
            _weight("stable_rank"),  # sum of squared singular values over the largest one squared, mean of its matrices
        ),
    ),
}

ONCE = "weights"
"""The group that has one table a stack instead of one a language."""


def collected(names: Iterable[str]) -> tuple[str, ...]:
    """Return the groups to collect, in the order of `GROUPS`; `core` always is.

    Raises:
        UsageError: if there is no such group.
    """
    wanted = {"core", *names}
    if unknown := sorted(wanted - set(GROUPS)):
        raise UsageError(f"`collect` must be of {', '.join(GROUPS)}, but names {', '.join(unknown)} instead.")
    return tuple(name for name in GROUPS if name in wanted)


def fields_of(groups: Iterable[str]) -> dict[str, Field]:
    """Return the fields of groups by name."""
    return {field.name: field for group in groups for field in GROUPS[group].fields}
