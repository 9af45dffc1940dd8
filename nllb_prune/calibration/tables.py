"""`Table`: the arrays of one stack for one language, or direction, and how two of them become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.calibration.fields import GROUPS, Field, fields_of
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack

Table = dict[str, NDArray[Any]]
"""Arrays by the name of their field; the first axis of most is the position class."""

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


def join_tables(tables: Sequence[Table]) -> Table:
    """Return what the tables of different text hold together; there must be at least one, all of the same fields."""
    first, *others = tables
    known = fields_of_table(first)
    if not others:
        return {name: first[name].copy() for name in known}
    joined = {name: _join(field, [table[name] for table in tables]) for name, field in known.items()}
    return joined | _sampled([name for name, field in known.items() if field.join == "sample"], tables)


def fields_of_table(table: Table) -> dict[str, Field]:
    """Return the fields that a table has, in their usual order."""
    return {name: field for name, field in fields_of(GROUPS).items() if name in table}


def _join(field: Field, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    shapes = sorted({array.shape[field.join == "sample" :] for array in arrays})
    if len(shapes) > 1:
        raise UsageError(f"`{field.name}` of the parts must have one shape, but has {' and '.join(map(str, shapes))}.")
    if field.join == "sample":
        return arrays[0]
    if field.join == "same":
        if not all(np.allclose(arrays[0], other, rtol=1e-3, atol=1e-6) for other in arrays[1:]):
            raise UsageError(f"`{field.name}` of the parts must be of the same weights, but differs.")
        return arrays[0].copy()
    operation = {"sum": np.add, "largest": np.maximum, "any": np.bitwise_or}[field.join]
    total = arrays[0].copy()
    for other in arrays[1:]:
        operation(total, other, out=total)
    return total


def _sampled(names: Sequence[str], tables: Sequence[Table]) -> Table:
    """Return the samples of lowest priority, which does not depend on how the tables were grouped."""
    if not names:
        return {}
    priorities = np.concatenate([table["sample_priority"] for table in tables])
    chosen = np.argsort(priorities, kind="stable")[:SAMPLES]
    return {name: np.concatenate([table[name] for table in tables])[chosen] for name in names}


def checked_table(table: Mapping[str, NDArray[Any]], fields: Mapping[str, Field], stack: Stack, where: str) -> Table:
    """Return a read-only copy of a table, sums on their grids.

    Raises:
        UsageError: if a field is missing, unknown, misshapen or has values it cannot have.
    """
    if set(table) != set(fields):
        raise UsageError(
            f"`{where}` must have the fields {', '.join(fields)}, but has {', '.join(sorted(table))} instead."
        )
    sizes: dict[str, int] = dict(_sizes(stack))
    return {name: _checked(table[name], field, sizes, f"{where}/{name}") for name, field in fields.items()}


def _checked(array: NDArray[Any], field: Field, sizes: dict[str, int], where: str) -> NDArray[Any]:
    """Return a read-only copy; an axis whose size is not known takes that of its first array."""
    if len(array.shape) == len(field.axes):
        for axis, size in zip(field.axes, array.shape, strict=True):
            sizes.setdefault(axis, size)
    wanted = tuple(sizes.get(axis, 0) for axis in field.axes)
    if array.shape != wanted:
        raise UsageError(f"`{where}` must have shape {wanted}, but has {array.shape} instead.")
    if not np.isfinite(array).all() or (not field.signed and (array < 0).any()):
        raise UsageError(f"`{where}` must be finite{'' if field.signed else ' and not negative'}, but is not.")
    if not field.bits and not np.can_cast(array.dtype, field.dtype, "same_kind"):
        raise UsageError(f"`{where}` must be of the type {field.dtype}, but is of {array.dtype} instead.")
    checked = _on_grid(array, field.bits, where) if field.bits else array.astype(field.dtype)
    checked.flags.writeable = False
    return checked


def _on_grid(values: NDArray[Any], bits: int, where: str) -> NDArray[np.float64]:
    scaled = np.rint(values.astype(np.float64) * 2.0**bits)
    if (np.abs(scaled) > 2.0**53).any():
        raise UsageError(
            f"`{where}` must be below {2.0 ** (53 - bits):.1g} to add up exactly, but is larger; use less text."
        )
    return scaled * 2.0**-bits


def tables_by_key(parts: Iterable[Mapping[tuple[str, str], Table]]) -> dict[tuple[str, str], Table]:
    """Join the tables of each stack and key over parts, in their order."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for part in parts:
        for key, table in part.items():
            groups.setdefault(key, []).append(table)
    return {key: join_tables(tables) for key, tables in groups.items()}
