"""The record of the guard in the plan of masks: which of them passed, what that cost, why others did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nllb_prune.languages import split_direction
from nllb_prune.masks import MaskSet
from nllb_prune.planning.measured.guard import PAIR
from nllb_prune.planning.measured.tolerances import Tolerances
from nllb_prune.planning.sharing import Place
from nllb_prune.report.guarded import GuardedDirection, GuardedMask, GuardRecord
from nllb_prune.report.tolerated import OF_DIRECTIONS, Reading, readings, worst


def guard_of(masks: MaskSet) -> GuardRecord | None:
    """Return what the guard did; nothing for masks that were not guarded."""
    record = masks.plan.get("guard")
    if record is None:
        return None
    tolerances = Tolerances.of(record["tolerances"])
    directions = _directions(record, tolerances)
    found = _masks(masks, record, tolerances, [each for each in directions if not each.passed])
    ((unit, limit),) = record["reserve"].items()
    return GuardRecord(
        masks=tuple(sorted(found, key=_need)),
        directions=tuple(directions),
        stacks=tuple(stack.name for stack in masks.stacks),
        tolerances=tolerances,
        reserve=(limit, unit),
        added=_added(masks, found, directions),
        measures=record["measures"]["calls"],
        passes=record["measures"]["directions"],
        text=masks.plan.get("measured", {}),
        failed=tuple(record["failed"]),
        unmeasured=_unmeasured(masks, record),
    )


def _directions(record: Mapping[str, Any], tolerances: Tolerances) -> list[GuardedDirection]:
    found = []
    for name, each in record["directions"].items():
        judged = {figure: value for figure, value in each["figures"].items() if figure in OF_DIRECTIONS}
        found.append(GuardedDirection(name, each["passed"], readings(judged, tolerances)))
    return sorted(found, key=lambda each: (each.passed, -_excess(each.worst), each.direction))


def _masks(
    masks: MaskSet, record: Mapping[str, Any], tolerances: Tolerances, failed: Sequence[GuardedDirection]
) -> list[GuardedMask]:
    most, blamed = _most(record), _blamed(record)
    found = []
    for stack in masks.stacks:
        using = _using(masks, stack.name, failed)
        for key, each in sorted(record["masks"][stack.name].items()):
            figures = readings(each["figures"], tolerances)
            own = _excess(worst(figures.values())) > 1
            for_one = not each["passed"] and (not own or f"{stack.name}/{key}" in blamed)
            found.append(
                GuardedMask(
                    stack=stack.name,
                    key=key,
                    planned=each["planned"],
                    kept=each["kept"],
                    passed=each["passed"],
                    readings=figures,
                    most=most.get(f"{stack.name}/{key}", 0.0),
                    direction=using.get(key) if for_one else None,
                )
            )
    return found


def _unmeasured(masks: MaskSet, record: Mapping[str, Any]) -> tuple[str, ...]:
    measured = record["masks"]
    return tuple(f"{stack}/{key}" for stack, each in masks.masks.items() for key in each if key not in measured[stack])


def _most(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the most that each mask was over, in any round."""
    most: dict[str, float] = {}
    for each in record["rounds"]:
        for place, excess in each["over"].items():
            most[place] = max(excess, most.get(place, 0.0))
    return most


def _blamed(record: Mapping[str, Any]) -> set[str]:
    """Return the masks that were to blame for a direction when directions were last looked at."""
    rounds = [each["over"] for each in record["rounds"] if each["stage"] == PAIR]
    return set(rounds[-1]) if rounds else set()


def _using(masks: MaskSet, stack: str, directions: Sequence[GuardedDirection]) -> dict[str, GuardedDirection]:
    """Return the first direction that uses each mask."""
    found: dict[str, GuardedDirection] = {}
    for each in directions:
        found.setdefault(masks.key(stack, *split_direction(each.direction)), each)
    return found


def _added(masks: MaskSet, found: Sequence[GuardedMask], directions: Sequence[GuardedDirection]) -> tuple[int, ...]:
    got: dict[Place, int] = {(each.stack, each.key): each.kept - each.planned for each in found}
    pairs = [split_direction(each.direction) for each in directions]
    return tuple(sum(got[stack.name, masks.key(stack.name, *pair)] for stack in masks.stacks) for pair in pairs)


def _excess(reading: Reading | None) -> float:
    return 0.0 if reading is None else reading.excess


def _need(mask: GuardedMask) -> tuple[bool, bool, float, str, str]:
    need = max(mask.excess, mask.most) if mask.passed else mask.excess
    return mask.passed, not mask.grown, -need, mask.stack, mask.key
