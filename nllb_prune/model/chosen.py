"""What of a checkpoint is to be loaded: which experts, for which masks, from which files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.describe import fingerprinted, prefixed, require_sparse
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.pruned import ExpertPruning, pruning_of
from nllb_prune.model.scheme import Scheme, unsuffixed
from nllb_prune.model.source import fetch_weights, model_folder, read_config
from nllb_prune.model.spec import ModelSpec
from nllb_prune.weights.checkpoint import Checkpoint

MASKS_FILE = "masks.json"
"""The masks that a pruned checkpoint was made from."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is to be loaded; made by `choose`, which fetches the files."""

    folder: Path
    config: Any
    """Of transformers."""
    family: Family
    spec: ModelSpec
    """Without fingerprint."""
    pruning: ExpertPruning | None
    """What a pruned checkpoint says of itself."""
    kept: Mapping[str, ExpertMask] | None
    """Experts to load, by stack; `None` for all."""
    files: Sequence[str] | None
    """Weight files to read; `None` for those of the index."""
    masks: MaskSet | None
    """Those whose experts are chosen."""
    direction: Direction | None
    own: bool
    """Whether the masks are those that the checkpoint carries."""

    @property
    def scheme(self) -> Scheme | None:
        """In which experts are stored, if not as floats."""
        return None if self.pruning is None else self.pruning.scheme

    @contextmanager
    def opened(self) -> Iterator[tuple[Checkpoint, ModelSpec]]:
        """Open the files, read the fingerprint, and refuse masks of another model."""
        family = self.family
        with Checkpoint(
            self.folder, prefix=family.base_prefix, original=family.original, files=self.files
        ) as checkpoint:
            spec = fingerprinted(family, self.spec, checkpoint)
            if self.masks is not None:
                self.masks.check_model(spec)
            yield checkpoint, spec

    def pruning_in_memory(self) -> ExpertPruning | None:
        """Return what a pruned checkpoint says of itself, narrowed to the direction of its own masks, if one is."""
        if self.pruning is None or self.direction is None or self.masks is None or not self.own:
            return self.pruning
        source, target = self.direction
        return dataclasses.replace(
            self.pruning,
            kept=self.masks.direction(source, target),
            sources=(source,),
            targets=(target,),
            directions=None,
            masks=self.masks.signature,
            parts=None,
        )

    def carried_masks(self) -> MaskSet | None:
        """Return the masks that a pruned checkpoint carries; `None` if it carries none."""
        carries = self.pruning is not None and (self.folder / MASKS_FILE).exists()
        return own_masks(self.folder) if carries else None


def choose(
    path_or_id: str | Path,
    *,
    masks: MaskSet | None = None,
    direction: Direction | None = None,
    revision: str | None = None,
) -> Chosen:
    """Decide what to load and fetch the files of a model on the Hub; arguments and errors are those of `load_model`."""
    folder = model_folder(path_or_id, revision=revision)
    config = read_config(folder)
    family = family_of(config)
    spec = family.spec(config)
    pruning = pruning_of(config, spec)
    if masks is not None:
        require_sparse(spec, path_or_id)
    own, files = masks is None and direction is not None, None
    if own:
        assert direction is not None
        masks = own_masks(folder)
        files = None if pruning is None else pruning.files_of(spec.stacks, *direction)
    kept = _kept(spec, pruning, None if masks is None or direction is None else masks.direction(*direction))
    _fetch(path_or_id, folder, family, spec, kept, files=files)
    return Chosen(
        folder=folder,
        config=config,
        family=family,
        spec=spec,
        pruning=pruning,
        kept=kept,
        files=files,
        masks=masks,
        direction=direction,
        own=own,
    )


def own_masks(folder: Path) -> MaskSet:
    """Return the masks that a pruned checkpoint carries.

    Raises:
        UsageError: if it carries none, as a whole model does.
    """
    if not (folder / MASKS_FILE).exists():
        raise UsageError(f"`direction` must come with masks where `{folder}` carries none, but comes without.")
    return MaskSet.load(folder / MASKS_FILE)


def _kept(
    spec: ModelSpec, pruning: ExpertPruning | None, kept: Mapping[str, ExpertMask] | None
) -> Mapping[str, ExpertMask] | None:
    """Return the experts to load: of a pruned checkpoint no more than it holds."""
    if pruning is None:
        return kept
    if kept is not None:
        pruning.check_holds(kept, spec.stacks)
    return pruning.kept if kept is None else kept


def _fetch(
    path_or_id: str | Path,
    folder: Path,
    family: Family,
    spec: ModelSpec,
    kept: Mapping[str, ExpertMask] | None,
    *,
    files: Sequence[str] | None,
) -> None:
    fits = kept is not None and all(len(kept.get(stack.name, ())) == len(stack.layers) for stack in spec.stacks)
    dropped = _dropped_names(family, spec, kept) if kept is not None and fits else set()
    fetch_weights(path_or_id, folder, lambda name: unsuffixed(prefixed(name, family)) not in dropped, files=files)


def _dropped_names(family: Family, spec: ModelSpec, kept: Mapping[str, ExpertMask]) -> set[str]:
    """Return the names of the tensors of experts that are not kept."""
    names: set[str] = set()
    for stack in spec.stacks:
        for layer, mask in zip(stack.layers, kept[stack.name], strict=True):
            path = family.sparse_path(stack.name, layer)
            for expert in set(range(stack.experts)) - set(mask):
                names.update(family.expert_tensors(path, expert).values())
    return names
