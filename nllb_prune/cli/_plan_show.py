"""What `nllb-prune plan` prints: what masks keep and take, and the criteria there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nllb_prune.cli._guard_show import describe_guard
from nllb_prune.cli._options import table
from nllb_prune.cli._search_show import describe_searches

if TYPE_CHECKING:
    from nllb_prune.masks import MaskSet
    from nllb_prune.model.spec import Stack

_SHOWN = 3  # different counts, before they are shown as ranges


def describe(masks: MaskSet) -> str:
    """Say in a few lines what masks keep, and what was measured of them."""
    rows = [
        (stack.name, str(len(masks.masks[stack.name])), _per_layer(masks, stack), str(stack.experts))
        for stack in masks.stacks
    ]
    lines = [table(("stack", "masks", "kept in each layer", "of"), rows)]
    lines += [f"note: {note}" for note in masks.plan.get("notes", ())]
    lines += [_of_direction(masks), *_memory(masks)]
    lines.append(f"{1 - masks.mean_kept_fraction():.2%} of the experts pruned; signature {masks.signature}")
    return "\n".join([*lines, *describe_searches(masks), *describe_guard(masks)])


def _per_layer(masks: MaskSet, stack: Stack) -> str:
    """Return the counts of each layer, as ranges over languages if they differ much."""
    counts = sorted({tuple(map(len, mask)) for mask in masks.masks[stack.name].values()})
    if len(counts) <= _SHOWN:
        return "; ".join(", ".join(map(str, layers)) for layers in counts)
    return ", ".join(_range(layer) for layer in zip(*counts, strict=True))


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def _of_direction(masks: MaskSet) -> str:
    """Say how many experts a direction keeps, from fewest to most."""
    sizes = [{key: sum(map(len, mask)) for key, mask in each.items()} for each in masks.masks.values() if each]
    every = sum(stack.total for stack in masks.stacks)
    if masks.granularity == "language":
        few, many = (sum(end(each.values()) for each in sizes) for end in (min, max))
    else:
        totals = [sum(each.get(key, 0) for each in sizes) for key in dict.fromkeys(k for each in sizes for k in each)]
        few, many = min(totals, default=0), max(totals, default=0)
    share = f"{few / every:.2%}" if few == many else f"{few / every:.2%} to {many / every:.2%}"
    return f"a direction keeps {_range((few, many))} of {every} experts, {share}"


def _memory(masks: MaskSet) -> list[str]:
    """Say what the weights of a direction take, and on which cards they fit, if that is known."""
    from nllb_prune.planning.memory import CARDS, fitting_cards, show_bytes

    if "bytes" not in masks.plan:
        return []
    size, dtype = masks.plan["bytes"], masks.plan["dtype"]
    cards = fitting_cards(size)
    fits = f"alone fit cards of {', '.join(map(str, cards))} GB" if cards else f"fit no card of {CARDS[-1]} GB or less"
    return [f"the weights of a direction take at most {show_bytes(size)} in {dtype} and {fits}"]


def list_criteria(*, as_json: bool) -> str:
    """Return every criterion: which end it drops, the groups it needs, formula, source, and what ranks as it does."""
    from nllb_prune.planning.criteria import describe_criteria

    header = ("name", "drops", "groups", "formula", "source", "same_as")
    criteria = [dict(zip(header, row, strict=True)) for row in describe_criteria()]
    if as_json:
        return json.dumps(criteria)
    rows = [(row["name"], row["drops"], row["groups"]) for row in criteria]
    start, *lines = table(header[:3], rows).splitlines()
    told = [f"  {row['formula']} [{row['source']}]{_same(row['same_as'])}" for row in criteria]
    return "\n".join([f"{start}  formula [source]", *(a + b for a, b in zip(lines, ["  -------", *told], strict=True))])


def _same(other: str) -> str:
    return f"; ranks a layer as {other} does" if other else ""
