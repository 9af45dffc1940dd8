"""What verbs print of a guard: which masks passed, what they cost, which failed and why."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from nllb_prune.cli._options import table

if TYPE_CHECKING:
    from nllb_prune.masks import MaskSet
    from nllb_prune.report.guarded import GuardedMask, GuardRecord

_WIDTH = 100
_ROWS = 20
_HEADER = ("mask", "planned", "kept", "worst figure, times its tolerance", "at most", "now", "")


def describe_guard(masks: MaskSet) -> list[str]:
    """Return lines on the guard of masks, none if they have none."""
    from nllb_prune.report.guard import guard_of

    record = guard_of(masks)
    if record is None:
        return []
    lines = [_passed(record), _cost(record)]
    rows = [_row(each) for each in record.touched[:_ROWS]]
    if rows:
        lines.append(table(_HEADER, rows))
    if len(record.touched) > _ROWS:
        lines.append(f"... and {len(record.touched) - _ROWS} more")
    if record.unmeasured:
        lines.append(_wrapped(f"not measured, no text: {', '.join(record.unmeasured)}"))
    if record.failed:
        lines.append(_wrapped(f"failed: {', '.join(record.failed)}"))
    return lines


def _passed(record: GuardRecord) -> str:
    counts = []
    for stack in record.stacks:
        every = record.of_stack(stack)
        counts.append(f"{sum(each.passed for each in every)} of {len(every)} {stack} masks")
    return f"guard: {' and '.join(counts)} passed, {record.measures} measures"


def _cost(record: GuardRecord) -> str:
    """Say what directions got."""
    if not record.grown:
        return "no mask grew"
    mean = sum(record.added) / len(record.added)
    return _wrapped(
        f"{record.grown} masks grew; a direction got {mean:.1f} experts on average and {max(record.added)} at most, "
        f"of a reserve of {_reserve(record.reserve)}"
    )


def _reserve(reserve: tuple[int, str]) -> str:
    """Return a reserve with its unit."""
    from nllb_prune.planning.memory import show_bytes

    limit, unit = reserve
    return show_bytes(limit) if unit == "bytes" else str(limit)


def _row(mask: GuardedMask) -> tuple[str, ...]:
    from nllb_prune.report.tolerated import times

    reading, direction = mask.worst
    figure = "-" if reading is None else reading.words + (f" of {direction}" if direction not in ("", mask.key) else "")
    outcome = "passed" if mask.passed else "FAILED"
    numbers = (times(max(mask.most, mask.excess)), times(mask.excess))
    return (f"{mask.stack}/{mask.key}", str(mask.planned), str(mask.kept), figure, *numbers, outcome)


def _wrapped(text: str) -> str:
    return fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
