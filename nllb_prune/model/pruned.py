"""`ExpertPruning`: what a pruned checkpoint says of itself in its `config.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.languages import Direction
from nllb_prune.masks import GLOBAL_KEY
from nllb_prune.model.scheme import Scheme
from nllb_prune.model.spec import Fingerprint, ModelSpec, Stack

FIELD = "expert_pruning"
"""Of `config.json`."""

DENSE = "dense"
"""The part of a checkpoint that every language uses."""

_FORMAT, _VERSION = "nllb-prune/expert-pruning", 1
_FEW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPruning:
    """Where a pruned checkpoint comes from, what it holds, and for which languages."""

    base_model: str
    base_revision: str | None = None
    """Commit on the Hub."""
    base_type: str
    """Its `model_type`."""
    fingerprint: Fingerprint
    """Of the base model, and of this one: routers keep all their rows."""
    kept: Mapping[str, ExpertMask]
    """Original ids of the experts that are there, by stack and sparse layer."""
    sources: tuple[str, ...]
    """Languages it was planned for; none when its masks are for all."""
    targets: tuple[str, ...]
    directions: tuple[Direction, ...] | None = None
    """Those it was planned for, where that is not every source into every target."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Id of the token of each language that its tokenizer knows."""
    masks: str
    """Signature of the masks."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """How they were chosen."""
    scheme: Scheme | None = None
    """In which experts are stored, if not as floats."""
    vocabulary: Mapping[str, int] | None = None
    """Pieces kept and pieces before, of a trimmed vocabulary."""
    parts: Mapping[str, tuple[str, ...]] | None = None
    """Weight files of `dense` and of each language side (`encoder.eng_Latn`), where they are apart."""

    def plans(self, source: str, target: str) -> bool:
        """Return whether it was planned for a direction."""
        if self.directions is not None:
            return (source, target) in self.directions
        return not (self.sources or self.targets) or (source in self.sources and target in self.targets)

    def languages(self) -> str:
        """Name what it was planned for, in a few words; nothing where that is all."""
        if self.directions is not None:
            return _few("-".join(each) for each in self.directions)
        if not (self.sources or self.targets):
            return ""
        if self.sources == self.targets:
            return f"{_few(self.sources)} among each other"
        return f"{_few(self.sources)} into {_few(self.targets)}"

    def files_of(self, stacks: Iterable[Stack], source: str, target: str) -> tuple[str, ...] | None:
        """Return the weight files that a direction needs, where parts are apart; `None`: those of the index."""
        if self.parts is None:
            return None
        sides = [DENSE, *(part_name(stack.name, stack.key(source, target)) for stack in stacks)]
        return tuple(file for side in sides for file in self.parts.get(side, ()))

    def check_holds(self, kept: Mapping[str, ExpertMask], stacks: Iterable[Stack]) -> None:
        """Refuse experts that are not there.

        Raises:
            UsageError: with the first that was left out.
        """
        for stack in stacks:
            for layer, (wanted, held) in enumerate(zip(kept[stack.name], self.kept[stack.name], strict=True)):
                if missing := sorted(set(wanted) - set(held)):
                    raise UsageError(
                        f"`masks` must use experts that the pruned checkpoint holds, but {stack.name} layer {layer} "
                        f"wants expert {missing[0]}, which was left out; export it from {self.base_model}."
                    )

    def check_spec(self, spec: ModelSpec) -> None:
        """Refuse experts that no checkpoint of a model can hold.

        Raises:
            UsageError: naming the layer.
        """
        for stack in spec.stacks:
            mask = self.kept.get(stack.name, ())
            wrong = [n for n, ids in enumerate(mask) if list(ids) != sorted({*ids} & {*range(stack.experts)})]
            wrong += [n for n, ids in enumerate(mask) if len(ids) < spec.top_k]
            if len(mask) != len(stack.layers) or wrong:
                where = (
                    f"layer {wrong[0]} of the {stack.name}" if wrong else f"the {len(mask)} layers of the {stack.name}"
                )
                raise UsageError(
                    f"`{FIELD}/kept` of the configuration must be {spec.top_k} or more sorted expert numbers below "
                    f"{stack.experts} for each of {len(stack.layers)} layers, but {where} of the {stack.name} are not; "
                    "export it again."
                )

    def to_json(self) -> dict[str, Any]:
        """Return the field of `config.json`."""
        content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "base_model": self.base_model,
            "base_revision": self.base_revision,
            "base_model_type": self.base_type,
            "fingerprint": self.fingerprint.to_json(),
            "kept": {stack: [list(ids) for ids in mask] for stack, mask in self.kept.items()},
            "sources": list(self.sources),
            "targets": list(self.targets),
            "directions": None if self.directions is None else ["-".join(each) for each in self.directions],
            "language_tokens": dict(self.tokens),
            "masks": self.masks,
            "plan": dict(self.plan),
        }
        if self.scheme is not None:
            content["experts"] = self.scheme.to_json()
        if self.vocabulary is not None:
            content["vocabulary"] = dict(self.vocabulary)
        if self.parts is not None:
            content["parts"] = {name: list(files) for name, files in self.parts.items()}
        return content

    @classmethod
    def from_json(cls, content: Any) -> ExpertPruning:
        """Rebuild from `to_json`.

        Raises:
            UsageError: if it is of another format or version, or lacks something.
        """
        form, version = (content.get(name) if isinstance(content, dict) else None for name in ("format", "version"))
        if (form, version) != (_FORMAT, _VERSION):
            raise UsageError(
                f"`{FIELD}` of the configuration must be of format {_FORMAT} version {_VERSION}, but is {form} version "
                f"{version} instead. Use the version of nllb-prune that wrote it."
            )
        try:
            return cls._read(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"`{FIELD}` of the configuration must be as nllb-prune wrote it, but lacks something or has it wrong "
                f"({error!r}); export the checkpoint again."
            ) from None

    @classmethod
    def _read(cls, content: dict[str, Any]) -> ExpertPruning:
        directions, experts, parts = (content.get(name) for name in ("directions", "experts", "parts"))
        return cls(
            base_model=content["base_model"],
            base_revision=content["base_revision"],
            base_type=content["base_model_type"],
            fingerprint=Fingerprint.from_json(content["fingerprint"]),
            kept={stack: tuple(tuple(ids) for ids in mask) for stack, mask in content["kept"].items()},
            sources=tuple(content["sources"]),
            targets=tuple(content["targets"]),
            directions=None if directions is None else tuple(_pair(each) for each in directions),
            tokens=content["language_tokens"],
            masks=content["masks"],
            plan=content["plan"],
            scheme=None if experts is None else Scheme.from_json(experts),
            vocabulary=content.get("vocabulary"),
            parts=None if parts is None else {name: tuple(files) for name, files in parts.items()},
        )


def part_name(stack: str, key: str) -> str:
    """Return the name of the part of a language side, and of its weight file."""
    return f"{stack}.{'all' if key == GLOBAL_KEY else key}"


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_FEW]) + (f" and {len(shown) - _FEW} more" if len(shown) > _FEW else "")


def _pair(direction: str) -> Direction:
    source, target = direction.split("-")
    return source, target


def pruning_of(config: Any, spec: ModelSpec | None = None) -> ExpertPruning | None:
    """Return what the configuration of a pruned checkpoint says, checked against a spec; `None` for another.

    Raises:
        UsageError: if it is not as it was written.
    """
    content = getattr(config, FIELD, None)
    if content is None:
        return None
    found = ExpertPruning.from_json(content)
    if spec is not None:
        found.check_spec(spec)
    return found
