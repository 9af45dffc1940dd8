"""What verbs print of searches: what each ratio cost, and how layers shared before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import table

if TYPE_CHECKING:
    from nllb_prune.masks import MaskSet

_CHOSEN = "<-"


def describe_searches(masks: MaskSet) -> list[str]:
    """Return lines on how the ratio and the layers of masks were found, none if they were not searched."""
    stacks = [stack.name for stack in masks.stacks]
    ratio, layers = masks.plan.get("ratio_search"), masks.plan.get("layer_search")
    lines = []
    if ratio is not None:
        lines += _by_language(ratio, stacks) if "languages" in ratio else _for_all(ratio, stacks)
    if layers is not None:
        lines += _layers(layers, stacks)
    return lines


def _for_all(search: Mapping[str, Any], stacks: Sequence[str]) -> list[str]:
    rows = []
    for point, chosen in _marked(search["curve"], search["chosen"]):
        worst = point["worst"]
        numbers = (_loss(point["loss_change"]), f"{_loss(worst['loss_change'])} {worst['direction']}")
        rows.append((*_experts(point["experts"], stacks), *numbers, chosen))
    first = f"ratio: {search['measures']} measures of token loss, nats more than the full model's"
    return [first, table((*stacks, "mean", "worst direction", ""), rows)]


def _marked(curve: Sequence[Mapping[str, Any]], chosen: Mapping[str, float]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the points with the mark of the first that is the chosen one."""
    place = [point["experts"] for point in curve].index(chosen)
    for n, point in enumerate(curve):
        yield point, _CHOSEN if n == place else ""


def _by_language(search: Mapping[str, Any], stacks: Sequence[str]) -> list[str]:
    rows = []
    for point, chosen in _marked(search["curve"], search["shared"]):
        alone = [point["alone"][stack] for stack in stacks]
        rows.append((*_experts(point["experts"], stacks), *map(_loss, (*alone, sum(alone))), chosen))
    header = (*stacks, *(f"{stack} alone" for stack in stacks), "both", "")
    first = f"ratio: {search['measures']} measures of token loss, nats more than the full model's"
    return [first, table(header, rows), *_own(search, stacks)]


def _own(search: Mapping[str, Any], stacks: Sequence[str]) -> list[str]:
    """Say what a ratio of its own brings each language, and between which they are."""
    losses = search["loss_change"]
    chosen = "each language its own" if search["chosen"] == "per_language" else "one for all"
    lines = [
        f"{chosen}: the loss is {_loss(losses['per_language'])} with a ratio per language, "
        f"{_loss(losses['shared'])} with the best for all"
    ]
    if search["chosen"] == "per_language" and search["languages"]:
        ratios = sorted(tuple(each[stack] for stack in stacks) for each in search["languages"].values())
        low, high = (" + ".join(map(str, ends)) for ends in (ratios[0], ratios[-1]))
        lines.append(f"languages keep {low} to {high} experts, {' + '.join(stacks)}")
    return lines


def _layers(search: Mapping[str, Any], stacks: Sequence[str]) -> list[str]:
    before, after = search["rounds"][0], search["chosen"]
    ends = (before["counts"], after["counts"])
    rows = [(stack, *(", ".join(f"{n:g}" for n in counts[stack]) for counts in ends)) for stack in stacks]
    losses = f"{_loss(before['before'])} before, {_loss(after['loss_change'])} after"
    return [
        f"layers: {search['measures']} measures, token loss {losses}",
        table(("stack", "experts of each layer before", "after"), rows),
    ]


def _experts(counts: Mapping[str, float], stacks: Sequence[str]) -> list[str]:
    return [f"{counts[stack]:g}".rjust(len(stack)) for stack in stacks]


def _loss(value: float) -> str:
    return f"{value:.4f}"
