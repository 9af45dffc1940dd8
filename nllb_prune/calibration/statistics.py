"""`ExpertStatistics`: what the text of each language did to every expert, as sums and counts that add up exactly."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, InitVar, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from nllb_prune._files import write_bytes
from nllb_prune._version import __version__
from nllb_prune.calibration.fields import ONCE, collected, fields_of
from nllb_prune.calibration.tables import (
    CLASSES,
    Table,
    add_tables,
    checked_table,
    empty_table,
    join_tables,
    position_classes,
)
from nllb_prune.errors import UsageError
from nllb_prune.languages import split_direction
from nllb_prune.model.spec import Fingerprint, ModelSpec, ParameterCounts, Stack

__all__ = ["CLASSES", "TEXT", "ExpertStatistics", "Granularity", "Setting", "Table", "empty_table", "position_classes"]

Granularity = Literal["language", "pair"]
Setting = str | int | float
TEXT = "text/"
"""Begins the name of a signature's entry that holds the digest of a language's lines."""

_FORMAT, _VERSION, _METADATA = "nllb-prune/statistics", 2, "nllb-prune"
_EVERY_KEY = "*"


@dataclass(frozen=True, slots=True, eq=False)
class ExpertStatistics:
    """Sums and counts per stack, language (or direction), position class, sparse layer and expert."""

    spec: ModelSpec
    """The model that was observed, with its fingerprint."""
    granularity: Granularity
    """Whether keys are languages (of the side the stack is keyed by) or directions `src-tgt`."""
    tables: Mapping[tuple[str, str], Table]
    """Tables by stack name and key; read-only here."""
    _: KW_ONLY
    items: tuple[str, ...]
    """Ids of the work items added up, sorted."""
    signature: Mapping[str, Setting]
    """How they were made; only statistics made the same way can be merged."""
    collect: tuple[str, ...] = ("core",)
    """Groups of fields that the tables have."""
    weights: Mapping[str, Table] = field(default_factory=dict)
    """Tables of the group `weights` by stack, when it was collected."""
    copy: InitVar[bool] = True
    """Copies the arrays; without, those given become read-only and are kept."""
    _digest: str = field(init=False, repr=False, default="")

    def __post_init__(self, copy: bool) -> None:
        if self.spec.fingerprint is None:
            raise UsageError(
                "`spec` must have a fingerprint, but has none. Read the router weights of the model first."
            )
        if self.granularity not in get_args(Granularity):
            raise UsageError(f"`granularity` must be language or pair, but is {self.granularity} instead.")
        stacks = {stack.name: stack for stack in self.spec.stacks}
        if unknown := sorted({name for name, _ in self.tables} - set(stacks)):
            raise UsageError(
                f"`tables` must be of the stacks {', '.join(stacks)}, but has {', '.join(unknown)} instead."
            )
        for _, key in self.tables if self.granularity == "pair" else ():
            split_direction(key)
        object.__setattr__(self, "collect", collected(self.collect))
        fields = fields_of(group for group in self.collect if group != ONCE)
        tables = {
            (name, key): checked_table(self.tables[name, key], fields, stacks[name], f"{name}/{key}", copy=copy)
            for name, key in sorted(self.tables)
        }
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "weights", self._checked_weights(copy=copy))
        object.__setattr__(self, "items", _without_repeats(self.items))
        object.__setattr__(self, "signature", dict(sorted(self.signature.items())))

    def _checked_weights(self, *, copy: bool) -> dict[str, Table]:
        wanted = {stack.name for stack in self.spec.stacks} if ONCE in self.collect else set()
        if set(self.weights) != wanted:
            raise UsageError(
                f"`weights` must be of the stacks {', '.join(sorted(wanted)) or '(none)'}, "
                f"but are of {', '.join(sorted(self.weights)) or 'none'} instead."
            )
        fields = fields_of([ONCE])
        return {
            name: checked_table(self.weights[name], fields, self.spec.stack(name), name, copy=copy)
            for name in sorted(self.weights)
        }

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the observed model."""
        assert self.spec.fingerprint is not None
        return self.spec.fingerprint

    def keys(self, stack: str) -> tuple[str, ...]:
        """Return the languages or directions of a stack, sorted."""
        return tuple(key for name, key in self.tables if name == stack)

    def table(self, stack: str, key: str) -> Table:
        """Return the table of a language or direction."""
        try:
            return self.tables[stack, key]
        except KeyError:
            known = ", ".join(self.keys(stack)) or "none"
            raise UsageError(
                f"`key` must be in the {stack} statistics ({known}), but is {key} instead. Calibrate it and merge."
            ) from None

    def pooled(self, stack: str, keys: Iterable[str]) -> Table:
        """Return the tables of some keys as one; none at all give zeros of the group `core`."""
        tables = [self.table(stack, key) for key in keys]
        return join_tables(tables) if tables else empty_table(self.spec.stack(stack))

    def directions(self, stack: str) -> dict[str, tuple[str, ...]]:
        """Return the directions of pair statistics by the language that the stack is keyed by."""
        groups: dict[str, list[str]] = {}
        for direction in self.keys(stack):
            groups.setdefault(self.spec.stack(stack).key(*split_direction(direction)), []).append(direction)
        return {key: tuple(groups[key]) for key in sorted(groups)}

    def as_language(self) -> ExpertStatistics:
        """Return statistics by language: those of pairs added up over directions."""
        if self.granularity == "language":
            return self
        tables = {
            (stack.name, key): self.pooled(stack.name, members)
            for stack in self.spec.stacks
            for key, members in self.directions(stack.name).items()
        }
        return ExpertStatistics(
            self.spec,
            "language",
            tables,
            items=self.items,
            signature=self.signature,
            collect=self.collect,
            weights=self.weights,
            copy=False,
        )

    def merge(self, other: ExpertStatistics) -> ExpertStatistics:
        """Return the sum with another; see `merge_all`."""
        return self.merge_all([self, other])

    @classmethod
    def merge_all(cls, parts: Iterable[ExpertStatistics]) -> ExpertStatistics:
        """Return the sum of statistics of one model, made the same way from different items.

        Each part is added as it comes and then let go. Sums are exact, so the order of the parts does not matter; model
        and weights, which may differ by rounding, are those of the part with the first items.

        Raises:
            UsageError: if there is none, or models, granularities, groups or signatures differ, or an item is in two
                parts.
        """
        totals: dict[tuple[str, str], Table] = {}
        items: list[str] = []
        head: ExpertStatistics | None = None
        for part in parts:
            head = part._without_tables() if head is None else _joined_heads(head, part._without_tables())
            add_tables(totals, part.tables)
            items += part.items
            del part  # or it would stay in memory while the next one is made
        if head is None:
            raise UsageError("`parts` must be one or more statistics, but is empty instead.")
        return replace(head, tables=totals, items=tuple(items), copy=False)

    def _without_tables(self) -> ExpertStatistics:
        return replace(self, tables={}, copy=False)

    def to_bytes(self) -> bytes:
        """Return the safetensors file; equal statistics give equal bytes."""
        return self._to_bytes({"tool": f"nllb-prune {__version__}"})

    def digest(self) -> str:
        """Return a short hash of the content, whatever version of the tool wrote it; made once."""
        if not self._digest:
            object.__setattr__(self, "_digest", hashlib.sha256(self._to_bytes({})).hexdigest()[:16])
        return self._digest

    def save(self, path: Path) -> None:
        """Write one safetensors file: tensors `stack/key/field`, and JSON metadata."""
        write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> ExpertStatistics:
        """Read a file of `save`.

        Raises:
            UsageError: if it is missing, damaged or something else.
        """
        if not path.is_file():
            raise UsageError(f"`{path}` must be a statistics file, but there is no such file. Make one with calibrate.")
        return cls.from_bytes(path.read_bytes(), name=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, *, name: str = "content") -> ExpertStatistics:
        """Rebuild from `to_bytes`; `name` is what to call the content in messages."""
        metadata = _metadata(content, name)
        try:
            tables = _tables(safetensors_numpy.load(content))
            return cls(
                _spec_from_json(metadata),
                metadata["granularity"],
                {place: table for place, table in tables.items() if place[1] != _EVERY_KEY},
                items=tuple(metadata["items"]),
                signature=metadata["signature"],
                collect=tuple(metadata["collect"]),
                weights={stack: table for (stack, key), table in tables.items() if key == _EVERY_KEY},
                copy=False,
            )
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"`{name}` must be a statistics file, but its content is wrong: {error}") from None

    def _to_bytes(self, extra: Mapping[str, str]) -> bytes:
        metadata = {"format": _FORMAT, "version": _VERSION, **extra, **_spec_to_json(self.spec)}
        metadata |= {"granularity": self.granularity, "items": list(self.items), "signature": dict(self.signature)}
        metadata["collect"] = list(self.collect)
        places = {**self.tables, **{(stack, _EVERY_KEY): table for stack, table in self.weights.items()}}
        tensors = {
            f"{stack}/{key}/{name}": array for (stack, key), table in places.items() for name, array in table.items()
        }
        text = json.dumps(metadata, ensure_ascii=False, sort_keys=True)
        content: bytes = safetensors_numpy.save(tensors, metadata={_METADATA: text})
        return content


def _joined_heads(head: ExpertStatistics, other: ExpertStatistics) -> ExpertStatistics:
    """Return that of the first items, with the signatures of both."""
    first, second = sorted((head, other), key=lambda each: each.items)
    _check_mergeable(first, second)
    weights = {name: join_tables([first.weights[name], second.weights[name]]) for name in first.weights}
    return replace(first, signature={**first.signature, **second.signature}, weights=weights, copy=False)


def _check_mergeable(a: ExpertStatistics, b: ExpertStatistics) -> None:
    if not a.fingerprint.matches(b.fingerprint):
        models = f"{a.fingerprint.short} and {b.fingerprint.short}"
        raise UsageError(f"`parts` must be statistics of one model, but are of {models} instead.")
    if a.granularity != b.granularity:
        raise UsageError(
            f"`granularity` of the parts must be equal, but is {a.granularity} and {b.granularity} instead. "
            "Turn statistics of pairs into those of languages first."
        )
    if a.collect != b.collect:
        raise UsageError(
            f"`collect` of the parts must be equal, but is {', '.join(a.collect)} and {', '.join(b.collect)} instead."
        )
    differing = [
        name
        for name in sorted({*a.signature, *b.signature})
        if a.signature.get(name) != b.signature.get(name)
        and not (name.startswith(TEXT) and (name not in a.signature or name not in b.signature))
    ]
    if differing:
        listed = ", ".join(f"{name} {a.signature.get(name)} and {b.signature.get(name)}" for name in differing)
        raise UsageError(f"`parts` must be made with equal settings, but have {listed} instead.")


def _without_repeats(items: Iterable[str]) -> tuple[str, ...]:
    counts = Counter(items)
    if repeated := sorted(item for item, count in counts.items() if count > 1):
        raise UsageError(f"`items` must be added up once each, but {', '.join(repeated)} is there twice.")
    return tuple(sorted(counts))


def _spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    assert spec.fingerprint is not None
    stacks, fingerprint = [stack.to_json() for stack in spec.stacks], spec.fingerprint.to_json()
    model = {name: value for name, value in asdict(spec).items() if name not in ("stacks", "fingerprint")}
    return {"model": model, "stacks": stacks, "fingerprint": fingerprint}


def _spec_from_json(metadata: Mapping[str, Any]) -> ModelSpec:
    model = dict(metadata["model"])
    parameters = model.pop("parameters")
    return ModelSpec(
        **model,
        parameters=None if parameters is None else ParameterCounts(**parameters),
        stacks=tuple(Stack.from_json(stack) for stack in metadata["stacks"]),
        fingerprint=Fingerprint.from_json(metadata["fingerprint"]),
    )


def _metadata(content: bytes, name: str) -> dict[str, Any]:
    try:
        # a safetensors file starts with the length of its JSON header: eight bytes, little-endian
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"][_METADATA])
        found, version = metadata["format"], metadata["version"]
    except (KeyError, TypeError, ValueError):
        found, version = None, None
    if found != _FORMAT:
        raise UsageError(f"`{name}` must be a statistics file of nllb-prune, but is something else instead.")
    if version != _VERSION:
        raise UsageError(
            f"`{name}` must have format version {_VERSION}, but has {version} instead. "
            "Use the version of nllb-prune that wrote it."
        )
    return dict(metadata)


def _tables(tensors: Mapping[str, NDArray[Any]]) -> dict[tuple[str, str], Table]:
    tables: dict[tuple[str, str], Table] = {}
    for path, tensor in tensors.items():
        stack, key, name = path.split("/")
        tables.setdefault((stack, key), {})[name] = tensor
    return tables
