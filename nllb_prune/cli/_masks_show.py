"""What `nllb-prune masks show` prints and draws."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import table
from nllb_prune.cli.plan import describe

if TYPE_CHECKING:
    from nllb_prune.masks import Change, ExpertMask, LayerChange, MaskSet
    from nllb_prune.model.spec import Stack
    from nllb_prune.planning.similarity import Overlap

_TOLD = ("guard", "layer_search", "ratio_search")  # of a plan, by `describe`; `--json` has all of it


def show(options: argparse.Namespace) -> None:
    """Print what masks keep and have in common, or one direction of them, or what a swap of two moves."""
    from nllb_prune.masks import MaskSet

    masks = MaskSet.load(options.masks)
    if options.plot is not None:
        _plot(options, masks)
    if options.direction is not None:
        _show_direction(options, masks)
    elif options.swap is not None:
        _show_swap(options, masks)
    else:
        _show_all(options, masks)
    if options.plot is not None and not options.json:
        print(f"drawn in {options.plot}")


def _plot(options: argparse.Namespace, masks: MaskSet) -> None:
    from nllb_prune.report.plots_masks import masks_sheet
    from nllb_prune.report.sheet import check_format

    check_format(options.plot)
    masks_sheet(masks).save(options.plot)


def _show_all(options: argparse.Namespace, masks: MaskSet) -> None:
    overlaps = {stack.name: _overlap(masks, stack) for stack in masks.stacks}
    if options.json:
        print(json.dumps(_content(masks, overlaps, matrix=options.matrix)))
        return
    print(f"{options.masks}: masks of {masks.model_name}, by {masks.granularity}")
    print(describe(masks))
    told = {name: value for name, value in masks.plan.items() if name not in _TOLD}
    print(json.dumps(told, sort_keys=True))
    print()
    rows = [_overlap_row(masks, stack, overlaps[stack.name]) for stack in masks.stacks]
    print(table(("stack", "union", "mean Jaccard", "lowest", "highest", "least similar", "most similar"), rows))
    union, total = sum(_union(masks, stack) for stack in masks.stacks), sum(stack.total for stack in masks.stacks)
    print(f"union {union:,} of {total:,}")
    for name, found in overlaps.items() if options.matrix else ():
        if found is not None:
            print(f"\n{_matrix(name, found)}")


def _overlap(masks: MaskSet, stack: Stack) -> Overlap | None:
    """Return what the masks of a stack have in common; none if there are none or too many."""
    from nllb_prune.planning.similarity import MOST, overlap

    return overlap(masks, stack.name) if 1 <= len(masks.masks[stack.name]) <= MOST else None


def _union(masks: MaskSet, stack: Stack) -> int:
    from nllb_prune.masks import size, union

    return size(union(masks.masks[stack.name].values()))


def _overlap_row(masks: MaskSet, stack: Stack, found: Overlap | None) -> tuple[str, ...]:
    union = f"{_union(masks, stack):,} of {stack.total:,}"
    if found is None or found.least_similar is None or found.most_similar is None:
        return (stack.name, union, "-", "-", "-", "-", "-")
    low, high = found.least_similar, found.most_similar
    numbers = (f"{found.mean:.3f}", f"{low[2]:.3f}", f"{high[2]:.3f}")
    return (stack.name, union, *numbers, f"{low[0]} {low[1]}", f"{high[0]} {high[1]}")


def _matrix(name: str, found: Overlap) -> str:
    rows = [(key, *(f"{value:.3f}" for value in row)) for key, row in zip(found.keys, found.matrix, strict=True)]
    return table((name, *found.keys), rows)


def _content(masks: MaskSet, overlaps: dict[str, Overlap | None], *, matrix: bool) -> dict[str, Any]:
    return {
        "model": masks.model_name,
        "fingerprint": masks.fingerprint.short,
        "granularity": masks.granularity,
        "signature": masks.signature,
        "kept_fraction": masks.mean_kept_fraction(),
        "plan": masks.plan,
        "stacks": [_stack_content(masks, stack, overlaps[stack.name], matrix=matrix) for stack in masks.stacks],
    }


def _stack_content(masks: MaskSet, stack: Stack, found: Overlap | None, *, matrix: bool) -> dict[str, Any]:
    by_key = masks.masks[stack.name]
    kept = {key: [len(layer) for layer in mask] for key, mask in by_key.items()}
    content = {**stack.to_json(), "kept": kept, "union": _union(masks, stack), "jaccard": None}
    if found is not None:
        content["jaccard"] = {
            "mean": found.mean,
            "least_similar": found.least_similar,
            "most_similar": found.most_similar,
            **({"keys": found.keys, "matrix": found.matrix.tolist()} if matrix else {}),
        }
    return content


def _show_direction(options: argparse.Namespace, masks: MaskSet) -> None:
    from nllb_prune.cli._directions import one_direction

    direction = one_direction(options.direction, masks)
    kept, total = masks.direction(*direction), sum(stack.total for stack in masks.stacks)
    if options.json:
        print(json.dumps({"direction": "-".join(direction), "kept": masks.kept(*direction), "masks": kept}))
        return
    print(f"{'-'.join(direction)}: {masks.kept(*direction):,} of {total:,} experts")
    for stack in masks.stacks:
        for line in _layer_lines(stack, kept[stack.name]):
            print(line)


def _layer_lines(stack: Stack, mask: ExpertMask) -> list[str]:
    return [
        f"{stack.name} layer {layer}, {len(ids)} of {stack.experts}: {' '.join(map(str, ids))}"
        for layer, ids in zip(stack.layers, mask, strict=True)
    ]


def _show_swap(options: argparse.Namespace, masks: MaskSet) -> None:
    from nllb_prune.cli._directions import one_direction

    before, after = (one_direction(text, masks) for text in options.swap)
    changes = masks.difference(before, after)
    names = "-".join(before), "-".join(after)
    if options.json:
        print(json.dumps({"before": names[0], "after": names[1], "changes": _changes_content(changes)}))
        return
    rows = [_change_row(stack, n, changes[stack.name]) for stack in masks.stacks for n in range(len(stack.layers))]
    every = [layer for change in changes.values() for layer in change]
    rows.append(("all", *(f"{sum(counts):,}" for counts in zip(*map(_counts, every), strict=True))))
    print(f"from {names[0]} to {names[1]}")
    print(table(("experts", "bring in", "may leave", "stay"), rows))


def _counts(layer: LayerChange) -> tuple[int, int, int]:
    return len(layer.incoming), len(layer.outgoing), len(layer.staying)


def _change_row(stack: Stack, n: int, change: Change) -> tuple[str, ...]:
    return (f"{stack.name} layer {stack.layers[n]}", *(f"{count:,}" for count in _counts(change[n])))


def _changes_content(changes: dict[str, Change]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(layer) for layer in change] for name, change in changes.items()}
