"""Where the modules of a model go: one device, or a map over several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nllb_prune.errors import UsageError

DeviceMap = str | torch.device | int | Mapping[str, Any]
"""A device, a policy of the library accelerate (`auto`, `balanced`, `balanced_low_0`, `sequential`), or a device for
each module by path, `""` being the rest."""

POLICIES = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True, slots=True)
class Placement:
    """A device for every module."""

    by_path: Mapping[str, torch.device]

    @classmethod
    def on(cls, device: torch.device) -> Placement:
        """Put all on one device."""
        return cls({"": device})

    @property
    def spread(self) -> bool:
        """Whether there is more than one device."""
        return len(set(self.by_path.values())) > 1

    @property
    def on_cpu(self) -> bool:
        """Whether all is on the CPU."""
        return all(device.type == "cpu" for device in self.by_path.values())

    def of(self, name: str) -> torch.device:
        """Return the device of a module or a parameter, that of the nearest module around it.

        Raises:
            UsageError: if the map has none.
        """
        path = name
        while path not in self.by_path:
            if not path:
                raise UsageError(f"`device_map` must have a device for `{name}`, but has none; add one for the rest.")
            path = path.rpartition(".")[0]
        return self.by_path[path]


def placement(
    device: torch.device | str | None, device_map: DeviceMap | None, empty: Callable[[], nn.Module]
) -> Placement:
    """Return where the modules go.

    Args:
        device: One for all.
        device_map: Instead of it.
        empty: Makes the model on the meta device, in the dtype it is stored in, where it must be weighed.

    Raises:
        UsageError: if both are given, a device is none, or accelerate is missing.
    """
    if device is not None and device_map is not None:
        raise UsageError("`device` must be left out where `device_map` is given, but both are.")
    if isinstance(device_map, Mapping):
        return Placement({path: _device(each) for path, each in device_map.items()})
    if device_map in POLICIES:
        return Placement({path: _device(each) for path, each in _inferred(empty(), str(device_map)).items()})
    return Placement.on(_device(device if device_map is None else device_map))


def _device(device: Any) -> torch.device:
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        raise UsageError(
            f"`device_map` must be a device that torch can use here, one of {', '.join(POLICIES)}, or devices by path, "
            f"but has {device}."
        ) from None
    return found


def _inferred(empty: Any, policy: str) -> dict[str, Any]:
    accelerate = need_accelerate()
    whole = empty._no_split_modules
    limits = None
    if policy != "sequential":
        limits = accelerate.utils.get_balanced_memory(
            empty, no_split_module_classes=whole, low_zero=policy == "balanced_low_0"
        )
    found: dict[str, Any] = accelerate.infer_auto_device_map(empty, max_memory=limits, no_split_module_classes=whole)
    if any(device == "disk" for device in found.values()):
        raise UsageError("The model must fit into the memory of all devices, but does not; prune it further.")
    return found


def need_accelerate() -> Any:
    """Import accelerate.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import accelerate
    except ImportError:
        raise UsageError(
            "`device_map` needs the library accelerate, which is not installed: pip install accelerate"
        ) from None
    return accelerate
