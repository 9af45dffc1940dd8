"""About how many bytes an export writes, told before it starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from nllb_prune.expert_mask import size
from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.model.expected import ExpectedTensors


def left_to_write(
    expected: ExpectedTensors, selection: Selection, settings: ExportSettings, config: Any, *, partial: Path
) -> int:
    """Return about how many bytes are going to be written beside what a killed run left."""
    return max(0, _about(expected, selection, settings, config) - _written(partial))


def _written(partial: Path) -> int:
    """Return the bytes of weights that a killed run left."""
    return sum(path.stat().st_size for path in partial.glob("shards/*")) if partial.is_dir() else 0


def _about(expected: ExpectedTensors, selection: Selection, settings: ExportSettings, config: Any) -> int:
    """Return about how many bytes are going to be written."""
    stored = getattr(config, "dtype", None) or torch.float32
    width = (settings.dtype or stored).itemsize
    scheme = settings.scheme
    bits = 8 * width if scheme is None else scheme.bits
    dense = sum(map(math.prod, [*expected.dense.values(), *expected.router_shapes.values()]))
    experts = sum(map(math.prod, expected.expert_shapes.values()))
    if settings.parts:  # what sides share is written for each of them
        once = sum(map(size, selection.kept.values()))
        experts = experts * sum(map(size, selection.sides().values())) // once
    return dense * width + experts * bits // 8
