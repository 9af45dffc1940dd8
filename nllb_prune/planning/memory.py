"""Bytes of a model's weights: what a direction takes, and the largest budget that fits."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import ParameterCounts

DTYPES: Mapping[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a parameter."""
CARDS = (8, 16, 24, 32, 40, 48, 80, 141)
"""Usual memory of accelerators, in 10**9 bytes."""

_ROUTER_BYTES = 4  # routers stay in float32
_PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_memory(text: str, *, name: str = "memory") -> int:
    """Read bytes, as in `24GiB`, `16 GB`, `800MiB` or a plain number; `name` is what the message calls them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), flags=re.IGNORECASE)
    if found is None or (found[3] and not found[2]):
        raise UsageError(f"`{name}` must be a size such as 24GiB, 16GB or 800MiB, but is {text} instead.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _PREFIXES[found[2].lower()])


def weight_bytes(parameters: ParameterCounts, experts: Mapping[str, int], dtype: str) -> int:
    """Return the bytes of the weights with so many experts in each stack; routers count in full, in float32."""
    kept = sum(parameters.expert[stack] * number for stack, number in experts.items())
    return (parameters.dense + kept) * dtype_bytes(dtype) + parameters.router * _ROUTER_BYTES


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of a parameter.

    Raises:
        UsageError: if the dtype is none that weights are kept in.
    """
    if dtype not in DTYPES:
        raise UsageError(f"`dtype` must be one of {', '.join(DTYPES)}, but is {dtype} instead.")
    return DTYPES[dtype]


def largest_fit(memory: int, budgets: range, size: Callable[[int], int]) -> int:
    """Return the largest budget whose size, which rises with it, fits.

    Raises:
        UsageError: if not even the smallest does.
    """
    fitting = bisect_right(budgets, memory, key=size)
    if not fitting:
        raise UsageError(
            f"`memory` must be {show_bytes(size(budgets[0]))} or more to hold the dense part, the routers and the "
            f"fewest experts ({budgets[0]}), but is {show_bytes(memory)} instead."
        )
    return budgets[fitting - 1]


def fitting_cards(size: int) -> tuple[int, ...]:
    """Return the usual cards, in GB, whose memory is larger than that."""
    return tuple(card for card in CARDS if card * 10**9 > size)


def show_bytes(size: int) -> str:
    """Return bytes to read, exact where a smaller unit would hide a difference."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size >= 10**power:
            return f"{size / 10**power:.2f} {unit} ({size} bytes)"
    return f"{size} bytes"
