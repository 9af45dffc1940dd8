"""One mask for several directions: the union of theirs, as a global `MaskSet`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import GLOBAL_KEY, MaskSet, union


def global_union(parts: Sequence[MaskSet], directions: Iterable[Direction]) -> MaskSet:
    """Return global masks that keep what any part keeps for any of the directions that it covers.

    Args:
        parts: masks of one model, of any granularity.
        directions: (source, target) pairs; each must be covered by one part or more.

    Raises:
        UsageError: if the parts are of different models, or no part covers a direction.
    """
    if not parts:
        raise UsageError("`parts` must be one or more sets of masks, but is empty instead.")
    wanted = tuple(dict.fromkeys(directions))
    for part in parts[1:]:
        check_same_model(parts[0], part)
    _check_covered(parts, wanted)
    covered = [(part, [pair for pair in wanted if part.covers(*pair)]) for part in parts]
    unions = [part.union(pairs) for part, pairs in covered if pairs]
    first = parts[0]
    return MaskSet(
        model_name=first.model_name,
        fingerprint=first.fingerprint,
        stacks=first.stacks,
        top_k=first.top_k,
        granularity="global",
        masks={stack.name: {GLOBAL_KEY: union(each[stack.name] for each in unions)} for stack in first.stacks},
        plan={"union": [_origin(part, pairs) for part, pairs in covered if pairs]},
    )


def check_same_model(ours: MaskSet, theirs: MaskSet, *, name: str = "theirs") -> None:
    """Refuse masks of another model; `name` is what to call them in the message.

    Raises:
        UsageError: if layers, top-k or fingerprints differ.
    """
    layers = ours.stacks == theirs.stacks and ours.top_k == theirs.top_k
    if not layers or not ours.fingerprint.matches(theirs.fingerprint):
        raise UsageError(
            f"`{name}` must be masks of the model {ours.model_name} (fingerprint {ours.fingerprint.short}), but is of "
            f"{theirs.model_name} (fingerprint {theirs.fingerprint.short}) instead."
        )


def _check_covered(parts: Sequence[MaskSet], directions: Sequence[Direction]) -> None:
    if not directions:
        raise UsageError("`directions` must have masks for one direction or more, but have none.")
    for pair in directions:
        if not any(part.covers(*pair) for part in parts):
            raise UsageError(
                f"`directions` must have masks, but {'-'.join(pair)} has none. Calibrate it and plan again."
            )


def _origin(part: MaskSet, directions: Sequence[Direction]) -> dict[str, object]:
    keys = {stack.name: sorted({part.key(stack.name, *pair) for pair in directions}) for stack in part.stacks}
    return {"signature": part.signature, "granularity": part.granularity, "keys": keys, "plan": dict(part.plan)}
