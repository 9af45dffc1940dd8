"""Tables of numbers inside JSON: base64 of deflated bytes, a quarter to a tenth of the same numbers as text."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COUNTS, _FLOATS = np.dtype("<i4"), np.dtype("<f8")


def pack(table: NDArray[Any]) -> dict[str, Any]:
    """Return a table ``(rows, columns)`` as JSON values: counts as int32, other numbers as float64, column by column.

    Raises:
        OverflowError: if a count needs more than 32 bits.
    """
    counts = np.issubdtype(table.dtype, np.integer)
    stored = table.astype(_COUNTS if counts else _FLOATS)
    if counts and not np.array_equal(stored, table):
        raise OverflowError("a count of one sentence needs more than 32 bits")
    content = zlib.compress(stored.tobytes(order="F"), 9)
    return {"shape": list(table.shape), "dtype": stored.dtype.name, "packed": base64.b64encode(content).decode()}


def unpack(content: Any) -> NDArray[Any]:
    """Rebuild the read-only table of `pack` as int64 or float64.

    Raises:
        ValueError: if it is something else.
    """
    try:
        stored = {dtype.name: dtype for dtype in (_COUNTS, _FLOATS)}[content["dtype"]]
        values = np.frombuffer(zlib.decompress(base64.b64decode(content["packed"], validate=True)), stored)
        table = values.reshape(content["shape"], order="F")
    except (KeyError, TypeError, zlib.error) as error:
        raise ValueError(f"not a packed table ({error!r})") from None
    if table.ndim != 2:
        raise ValueError(f"a table of {table.ndim} dimensions instead of 2")
    wide = table.astype(np.int64 if stored == _COUNTS else np.float64, order="C")
    wide.setflags(write=False)
    return wide
