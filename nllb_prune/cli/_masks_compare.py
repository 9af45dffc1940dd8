"""What `nllb-prune masks compare` prints and draws."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import table
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.masks import MaskSet
    from nllb_prune.model.spec import Stack
    from nllb_prune.planning.similarity import KeyComparison

    Found = dict[str, tuple[KeyComparison, ...]]


def compare(options: argparse.Namespace) -> None:
    """Print how two sets of masks differ, key by key."""
    from nllb_prune.masks import MaskSet
    from nllb_prune.planning.similarity import compare

    ours, theirs = MaskSet.load(options.masks), MaskSet.load(options.other)
    _check(options, ours, theirs)
    found = {stack.name: compare(ours, theirs, stack.name) for stack in ours.stacks}
    if options.plot is not None:
        _plot(options, ours, theirs)
    if options.json:
        stacks = [_content(stack, found[stack.name], ours, theirs) for stack in ours.stacks]
        print(json.dumps({"masks": str(options.masks), "other": str(options.other), "stacks": stacks}))
        return
    _print(options, ours, theirs, found)
    if options.plot is not None:
        print(f"drawn in {options.plot}")


def _check(options: argparse.Namespace, ours: MaskSet, theirs: MaskSet) -> None:
    if ours.stacks != theirs.stacks:
        raise UsageError(f"`{options.other}` must be masks of the same layers as `{options.masks}`, but is not.")
    if not any(set(ours.masks[stack.name]) & set(theirs.masks[stack.name]) for stack in ours.stacks):
        raise UsageError(
            f"`{options.other}` (by {theirs.granularity}) must have masks for the languages or directions of "
            f"`{options.masks}` (by {ours.granularity}), but shares none of them."
        )


def _plot(options: argparse.Namespace, ours: MaskSet, theirs: MaskSet) -> None:
    from nllb_prune.report.plots_comparison import comparison_sheet
    from nllb_prune.report.sheet import check_format

    check_format(options.plot)
    names = options.masks.stem, options.other.stem
    names = ("first", "second") if names[0] == names[1] else names
    comparison_sheet(ours, theirs, names=names).save(options.plot)


def _print(options: argparse.Namespace, ours: MaskSet, theirs: MaskSet, found: Found) -> None:
    rows = [(f"{name} {each.key}", *_cells(each)) for name, each_stack in found.items() for each in each_stack]
    print(table(("mask", "Jaccard", "in both", "only first", "only second"), rows))
    means = [(name, str(len(each)), f"{_mean(each):.3f}") for name, each in found.items() if each]
    print(f"\n{table(('stack', 'masks in both', 'mean Jaccard'), means)}")
    for path, here, there in ((options.masks, ours, theirs), (options.other, theirs, ours)):
        for stack in here.stacks:
            if alone := _alone(stack, here, there):
                print(f"only in {path}: {stack.name} {', '.join(alone)}")
    if not ours.fingerprint.matches(theirs.fingerprint):
        print(f"note: the masks are of different models, {ours.model_name} and {theirs.model_name}")


def _cells(each: KeyComparison) -> tuple[str, ...]:
    return f"{each.jaccard:.3f}", f"{each.shared:,}", f"{each.only_ours:,}", f"{each.only_theirs:,}"


def _mean(found: tuple[KeyComparison, ...]) -> float:
    return sum(each.jaccard for each in found) / len(found)


def _alone(stack: Stack, here: MaskSet, there: MaskSet) -> list[str]:
    return [key for key in here.masks[stack.name] if key not in there.masks[stack.name]]


def _content(stack: Stack, found: tuple[KeyComparison, ...], ours: MaskSet, theirs: MaskSet) -> dict[str, Any]:
    return {
        "stack": stack.name,
        "mean": _mean(found) if found else None,
        "masks": [asdict(each) for each in found],
        "only_ours": _alone(stack, ours, theirs),
        "only_theirs": _alone(stack, theirs, ours),
    }
