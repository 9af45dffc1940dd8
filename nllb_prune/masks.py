"""`MaskSet`: the experts that each language keeps, and its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nllb_prune._files import read_json, write_text
from nllb_prune._layout import dumps
from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import Change, ExpertMask, LayerChange, applied, difference, mask_array, size, union
from nllb_prune.languages import Direction, split_direction
from nllb_prune.model.spec import Fingerprint, ModelSpec, Stack

__all__ = [
    "GLOBAL_KEY",
    "Change",
    "ExpertMask",
    "LayerChange",
    "MaskGranularity",
    "MaskSet",
    "applied",
    "difference",
    "mask_array",
    "size",
    "union",
]

MaskGranularity = Literal["language", "pair", "global"]
GLOBAL_KEY = "*"

_FORMAT, _VERSION = "nllb-prune/masks", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSet:
    """The kept experts of a model: encoder masks by source and decoder ones by target, by direction, or one for all."""

    model_name: str
    fingerprint: Fingerprint
    """Of the model the masks belong to."""
    stacks: tuple[Stack, ...]
    top_k: int = 2
    """Experts that run for a token: no layer keeps fewer."""
    granularity: MaskGranularity
    masks: Mapping[str, Mapping[str, ExpertMask]]
    """By stack name and key: a language, a direction `src-tgt`, or `*`."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """How they were chosen, as JSON values."""

    def __post_init__(self) -> None:
        known = get_args(MaskGranularity)
        if self.granularity not in known:
            raise UsageError(f"`granularity` must be one of {', '.join(known)}, but is {self.granularity} instead.")
        if set(self.masks) != {stack.name for stack in self.stacks}:
            names = ", ".join(stack.name for stack in self.stacks)
            raise UsageError(
                f"`masks` must be of the stacks {names}, but is of {', '.join(sorted(self.masks))} instead."
            )
        object.__setattr__(self, "masks", {stack.name: self._checked(stack) for stack in self.stacks})
        object.__setattr__(self, "plan", json.loads(json.dumps(self.plan)))

    def _checked(self, stack: Stack) -> dict[str, ExpertMask]:
        masks = self.masks[stack.name]
        for key in masks:
            if self.granularity == "pair":
                split_direction(key)
            if (key == GLOBAL_KEY) != (self.granularity == "global"):
                raise UsageError(f"`masks` must have the key * if and only if they are global, but have {key} instead.")
        return {key: _checked_mask(masks[key], stack, key=key, top_k=self.top_k) for key in sorted(masks)}

    def stack(self, name: str) -> Stack:
        """Return the stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)

    def mask(self, stack: str, source: str, target: str) -> ExpertMask:
        """Return the kept experts of a stack for a direction.

        Raises:
            UsageError: if no mask was planned for its language.
        """
        by_key = self.masks[stack]
        key = self.key(stack, source, target)
        if key not in by_key:
            name = "direction" if "-" in key else self.stack(stack).keyed_by
            raise UsageError(
                f"`{name}` must have a mask ({', '.join(by_key) or 'none has one'}), but is {key} instead. "
                "Calibrate it and plan again."
            )
        return by_key[key]

    def key(self, stack: str, source: str, target: str) -> str:
        """Return the key of a stack's mask for a direction, whether or not there is one."""
        if self.granularity == "global":
            return GLOBAL_KEY
        return f"{source}-{target}" if self.granularity == "pair" else self.stack(stack).key(source, target)

    def as_array(self, stack: str, source: str, target: str) -> NDArray[np.bool_]:
        """Return which experts are kept, (layers, experts)."""
        return mask_array(self.mask(stack, source, target), self.stack(stack).experts)

    def direction(self, source: str, target: str) -> dict[str, ExpertMask]:
        """Return the masks of every stack for a direction."""
        return {stack.name: self.mask(stack.name, source, target) for stack in self.stacks}

    def union(self, directions: Iterable[Direction]) -> dict[str, ExpertMask]:
        """Return, for every stack, the experts that any of the directions keeps.

        Raises:
            UsageError: if there is no direction, or one without masks.
        """
        wanted = list(directions)
        if not wanted:
            raise UsageError("`directions` must be one or more (source, target) pairs, but is empty instead.")
        return {stack.name: self._union(stack.name, wanted) for stack in self.stacks}

    def _union(self, stack: str, directions: Iterable[Direction]) -> ExpertMask:
        by_key = {self.key(stack, *direction): direction for direction in directions}  # 202 masks, 40,602 directions
        return union(self.mask(stack, *direction) for direction in by_key.values())

    def difference(self, before: Direction, after: Direction) -> dict[str, Change]:
        """Return, for every stack, what a swap from one direction to another must move.

        Raises:
            UsageError: if a direction has no masks.
        """
        old, new = self.direction(*before), self.direction(*after)
        return {stack.name: difference(old[stack.name], new[stack.name]) for stack in self.stacks}

    def covers(self, source: str, target: str) -> bool:
        """Return whether every stack has a mask for a direction."""
        return all(self.key(stack.name, source, target) in self.masks[stack.name] for stack in self.stacks)

    def sources(self) -> tuple[str, ...]:
        """Return the languages that can be a source; none are listed by global masks, which fit all."""
        return self._languages("source")

    def targets(self) -> tuple[str, ...]:
        """Return the languages that can be a target; none are listed by global masks, which fit all."""
        return self._languages("target")

    def _languages(self, side: Literal["source", "target"]) -> tuple[str, ...]:
        found: set[str] = set()
        for stack in self.stacks if self.granularity != "global" else ():
            if self.granularity == "pair" or stack.keyed_by == "direction":
                found |= {split_direction(key)[side == "target"] for key in self.masks[stack.name]}
            elif stack.keyed_by == side:
                found |= set(self.masks[stack.name])
        return tuple(sorted(found))

    def languages(self) -> tuple[str, ...]:
        """Return the languages that can be a source or a target; none are listed by global masks, which fit all."""
        return tuple(sorted({*self.sources(), *self.targets()}))

    def kept(self, source: str, target: str) -> int:
        """Return how many experts a direction keeps."""
        return sum(map(size, self.direction(source, target).values()))

    def kept_fraction(self, source: str, target: str) -> float:
        """Return the share of the model's experts that a direction keeps."""
        return self.kept(source, target) / sum(stack.total for stack in self.stacks)

    def mean_kept_fraction(self) -> float:
        """Return the share of the model's experts that a direction keeps on average over the masks of each stack."""
        sizes = [[size(mask) for mask in self.masks[stack.name].values()] for stack in self.stacks]
        return sum(sum(each) / max(len(each), 1) for each in sizes) / sum(stack.total for stack in self.stacks)

    def check_model(self, spec: ModelSpec, *, name: str | None = None) -> None:
        """Refuse a model that the masks were not planned for; `name` is what to call it in the message.

        Raises:
            UsageError: if the fingerprints differ.
        """
        if spec.fingerprint is not None and self.fingerprint.matches(spec.fingerprint):
            return
        given = spec.fingerprint.short if spec.fingerprint is not None else "none"
        raise UsageError(
            f"`masks` must belong to the model {name or spec.family} (fingerprint {given}), but are of "
            f"{self.model_name} (fingerprint {self.fingerprint.short}) instead. "
            "Plan masks from statistics of this model."
        )

    @property
    def signature(self) -> str:
        """A short hash of the content, whatever version of the tool wrote it."""
        return hashlib.sha256(dumps(self._content()).encode()).hexdigest()[:12]

    def to_text(self) -> str:
        """Return the JSON file; equal masks give equal text."""
        return dumps({**self._content(), "tool": f"nllb-prune {__version__}"}) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the JSON file."""
        write_text(Path(path), self.to_text())

    @classmethod
    def load(cls, path: str | Path) -> MaskSet:
        """Read a file of `save`.

        Raises:
            UsageError: if it is missing, is something else, or holds masks that no model can have.
        """
        path = Path(path)
        content = read_json(path, what="a mask file")
        _check_format(path, content)
        try:
            return cls(
                model_name=content["model"]["name"],
                fingerprint=Fingerprint.from_json(content["model"]["fingerprint"]),
                stacks=tuple(Stack.from_json(stack) for stack in content["stacks"]),
                top_k=content["model"]["top_k"],
                granularity=content["granularity"],
                masks=content["masks"],
                plan=content["plan"],
            )
        except UsageError as error:
            raise UsageError(f"`{path}` must be a mask file, but its content is wrong: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"`{path}` must be a mask file, but lacks something or has it wrong ({error!r})."
            ) from None

    def _content(self) -> dict[str, Any]:
        model = {"name": self.model_name, "fingerprint": self.fingerprint.to_json(), "top_k": self.top_k}
        stacks = [stack.to_json() for stack in self.stacks]
        content = {"format": _FORMAT, "version": _VERSION, "model": model, "stacks": stacks}
        return {**content, "granularity": self.granularity, "plan": self.plan, "masks": self.masks}


def _checked_mask(mask: Sequence[Sequence[int]], stack: Stack, *, key: str, top_k: int) -> ExpertMask:
    where = f"masks/{stack.name}/{key}"
    if len(mask) != len(stack.layers):
        raise UsageError(f"`{where}` must have {len(stack.layers)} layers, but has {len(mask)} instead.")
    for layer, ids in enumerate(mask):
        if not all(type(each) is int and 0 <= each < stack.experts for each in ids):
            raise UsageError(f"`{where}` must hold expert ids 0 to {stack.experts - 1}, but layer {layer} does not.")
        if any(a >= b for a, b in pairwise(ids)):
            raise UsageError(f"`{where}` must be sorted, each expert once, but layer {layer} is not.")
        if len(ids) < top_k:
            raise UsageError(
                f"`{where}` must keep {top_k} or more experts a layer, but layer {layer} keeps {len(ids)}."
            )
    return tuple(tuple(ids) for ids in mask)


def _check_format(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise UsageError(
            f"`{path}` must be a mask file of nllb-prune, but is other JSON instead. "
            "If it is an expert index, a list of ids by language, import it first."
        )
    if content.get("version") != _VERSION:
        raise UsageError(
            f"`{path}` must have format version {_VERSION}, but has {content.get('version')} instead. "
            "Use the version of nllb-prune that wrote it."
        )
