"""`Table`: the arrays of one stack for one language, or direction, and how two of them become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from nllb_prune.calibration.fields import GROUPS, Field, fields_of
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack

Table = dict[str, NDArray[Any]]
"""Arrays by the name of their field; the first axis of most is the position class."""
_Place = TypeVar("_Place")

CLASSES = {"encoder": ("all", "language", "text", "end"), "decoder": ("all", "start", "language", "text", "end")}
"""Names of the position classes; those of the encoder are of any stack keyed by source."""
SAMPLES = 256
"""Tokens that the group `reservoir` keeps for each stack and language."""


def position_classes(stack: Stack) -> tuple[str, ...]:
    """Return the names of the position classes of a stack, `all` first."""
    return CLASSES["encoder" if stack.keyed_by == "source" else "decoder"]


def empty_table(stack: Stack) -> Table:
    """Return the fields of the group `core`, all zeros."""
    sizes = _sizes(stack)
    return {
        name: np.zeros([sizes[axis] for axis in field.axes], field.dtype) for name, field in fields_of(["core"]).items()
    }


def _sizes(stack: Stack) -> dict[str, int]:
    """Return the axes whose size follows from the stack."""
    return {
        "class": len(position_classes(stack)),
        "layer": len(stack.layers),
        "expert": stack.experts,
        "other": stack.experts,
    }


def join_tables(tables: Iterable[Table]) -> Table:
    """Return what the tables of different text hold together; there must be at least one, all of the same fields."""
    first, *others = tables
    joined = {name: first[name].copy() for name in fields_of_table(first)}
    for other in others:
        joined = _joined(joined, other)
    return joined


def add_tables(totals: dict[_Place, Table], tables: Mapping[_Place, Table]) -> None:
    """Join tables to the totals of their places. A read-only total belongs to somebody else and is not added to."""
    for place, table in tables.items():
        totals[place] = _joined(totals[place], table) if place in totals else table


def fields_of_table(table: Table) -> dict[str, Field]:
    """Return the fields that a table has, in their usual order."""
    return {name: field for name, field in fields_of(GROUPS).items() if name in table}


def _joined(total: Table, other: Table) -> Table:
    """Return two tables as one, in the arrays of the first where they may be written to."""
    known = fields_of_table(total)
    joined = {name: _join(field, total[name], other[name]) for name, field in known.items()}
    return joined | _sampled([name for name, field in known.items() if field.join == "sample"], total, other)


def _join(field: Field, total: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    shapes = sorted({array.shape[field.join == "sample" :] for array in (total, other)})
    if len(shapes) > 1:
        raise UsageError(f"`{field.name}` of the parts must have one shape, but has {' and '.join(map(str, shapes))}.")
    if field.join == "same" and not np.allclose(total, other, rtol=1e-3, atol=1e-6):
        raise UsageError(f"`{field.name}` of the parts must be of the same weights, but differs.")
    if field.join in ("same", "sample"):
        return total
    operation = {"sum": np.add, "largest": np.maximum, "any": np.bitwise_or}[field.join]
    result: NDArray[Any] = operation(total, other, out=total if total.flags.writeable else None)
    return result


def _sampled(names: Sequence[str], *tables: Table) -> Table:
    """Return the samples of lowest priority, which does not depend on how the tables were grouped."""
    if not names:
        return {}
    priorities = np.concatenate([table["sample_priority"] for table in tables])
    chosen = np.argsort(priorities, kind="stable")[:SAMPLES]
    return {name: np.concatenate([table[name] for table in tables])[chosen] for name in names}


def checked_table(
    table: Mapping[str, NDArray[Any]], fields: Mapping[str, Field], stack: Stack, where: str, *, copy: bool = True
) -> Table:
    """Return a table that is read-only, sums on their grids: a copy, or its own arrays where they can be kept.

    Raises:
        UsageError: if a field is missing, unknown, misshapen or has values it cannot have.
    """
    if set(table) != set(fields):
        raise UsageError(
            f"`{where}` must have the fields {', '.join(fields)}, but has {', '.join(sorted(table))} instead."
        )
    sizes: dict[str, int] = dict(_sizes(stack))
    checked = {name: _checked(table[name], field, sizes, f"{where}/{name}") for name, field in fields.items()}
    for name, array in checked.items():
        if copy and array is table[name]:
            checked[name] = array = array.copy()
        array.flags.writeable = False
    return checked


def _checked(array: NDArray[Any], field: Field, sizes: dict[str, int], where: str) -> NDArray[Any]:
    """Return the array, or another where its type or values must change.

    An axis whose size is not known takes that of its first array.
    """
    if len(array.shape) == len(field.axes):
        for axis, size in zip(field.axes, array.shape, strict=True):
            sizes.setdefault(axis, size)
    wanted = tuple(sizes.get(axis, 0) for axis in field.axes)
    if array.shape != wanted:
        raise UsageError(f"`{where}` must have shape {wanted}, but has {array.shape} instead.")
    if not np.isfinite(array).all() or (not field.signed and (array < 0).any()):
        raise UsageError(f"`{where}` must be finite{'' if field.signed else ' and not negative'}, but is not.")
    if field.bits:
        return _on_grid(array, field.bits, where)
    if not np.can_cast(array.dtype, field.dtype, "same_kind"):
        raise UsageError(f"`{where}` must be of the type {field.dtype}, but is of {array.dtype} instead.")
    return array.astype(field.dtype, copy=False)


def _on_grid(values: NDArray[Any], bits: int, where: str) -> NDArray[np.float64]:
    scaled = values.astype(np.float64) * 2.0**bits
    np.rint(scaled, out=scaled)
    if (np.abs(scaled) > 2.0**53).any():
        raise UsageError(
            f"`{where}` must be below {2.0 ** (53 - bits):.1g} to add up exactly, but is larger; use less text."
        )
    scaled *= 2.0**-bits
    return values if values.dtype == np.float64 and np.array_equal(values, scaled) else scaled
