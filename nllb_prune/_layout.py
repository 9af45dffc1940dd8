"""JSON with one line per list of plain values, so that a mask file can be read and compared line by line."""

from __future__ import annotations

import json
from typing import Any


def dumps(value: Any, *, indent: int = 0) -> str:
    """Return JSON with sorted keys; equal values give equal text."""
    if isinstance(value, dict) and value:
        lines = [f"{_plain(str(key))}: {dumps(value[key], indent=indent + 1)}" for key in sorted(value)]
        return _block("{", lines, "}", indent)
    if isinstance(value, (list, tuple)) and any(isinstance(each, (list, tuple, dict)) for each in value):
        return _block("[", [dumps(each, indent=indent + 1) for each in value], "]", indent)
    return _plain(value)


def _block(opening: str, lines: list[str], closing: str, indent: int) -> str:
    inner = ",\n".join(" " * (indent + 1) + line for line in lines)
    return f"{opening}\n{inner}\n{' ' * indent}{closing}"


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
