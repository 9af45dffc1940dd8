"""`export`: a model and masks to a smaller checkpoint, one weight file at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import size
from nllb_prune.exporting.card import model_card
from nllb_prune.exporting.conversion import Conversion
from nllb_prune.exporting.router_check import RouterCheck
from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.settings import USUAL, ExportSettings
from nllb_prune.exporting.small_files import small_files
from nllb_prune.exporting.tokenisation import TokenisationChange, tokenisation_changes
from nllb_prune.exporting.vocabulary import TrimmedVocabulary, trimmed
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.describe import require_sparse
from nllb_prune.model.expected import ExpectedTensors, expected_tensors
from nllb_prune.model.families import family_of
from nllb_prune.model.pruned import DENSE, ExpertPruning, part_name, pruning_of
from nllb_prune.model.source import load_tokenizer, model_folder, model_name, read_config
from nllb_prune.model.spec import ModelSpec
from nllb_prune.model.weight_files import WeightFiles, weight_files
from nllb_prune.tokenization import known_languages, language_id
from nllb_prune.weights.partial import partial_path
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.writer import CheckpointWriter
from nllb_prune.worklist import Progress, settings_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    experts: Mapping[str, int]
    """Kept, by stack."""
    tensors: int
    bytes_kept: int
    """Of what was kept, as it is stored in the base model."""
    bytes_read: int
    """Of weight files; what is fetched counts whole."""
    bytes_written: int
    """Of weights."""
    pruning: ExpertPruning
    tokenisation: Mapping[str, TokenisationChange]
    """What a trimmed vocabulary does to lines of its text by language, of those that were not kept too."""


def export(
    path_or_id: str | Path,
    output: Path,
    *,
    masks: MaskSet,
    directions: Sequence[Direction] = (),
    settings: ExportSettings = USUAL,
    vocabulary: ParallelText | None = None,
    evaluation: str | None = None,
    disk: int | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a checkpoint that holds only the experts that some directions need.

    Only what is kept is read, a tensor at a time. A killed run continues; nothing stands under the final name before
    all of it does.

    Args:
        path_or_id: `mini`, a folder, or a Hub id, of a whole model or of a pruned one that holds what is asked for.
        output: Folder to write.
        masks: Of this model.
        directions: To keep the experts of: their union. None are needed for global masks.
        settings: What the checkpoint is to be like.
        vocabulary: Text in the languages kept; pieces that do not occur in it are left out.
        evaluation: Markdown of an evaluation, for the card.
        disk: Bytes that weight files of a Hub id may take while they are read, with what is written.
        restart: Throw away what a killed run left, and replace what the folder holds.
        progress: Wraps the loop over tensors.

    Raises:
        UsageError: on masks of another model, directions without masks, tensors that are missing or unexpected, a
            folder that is there already, or a disk that is full.
    """
    job = _Job.of(
        path_or_id, Selection.of(masks, directions), settings, vocabulary, partial=partial_path(output), disk=disk
    )
    with CheckpointWriter(
        output,
        settings=job.signature(),
        sources=job.sources(),
        shard_bytes=settings.shard_bytes,
        restart=restart,
    ) as writer:
        job.write(writer, progress)
        pruning = job.pruning(writer)
        manifest = writer.finish(job.small_files(pruning, evaluation))
    return Exported(
        folder=output,
        experts={stack: sum(map(len, mask)) for stack, mask in pruning.kept.items()},
        tensors=job.tensors,
        bytes_kept=job.bytes_kept,
        bytes_read=job.bytes_read,
        bytes_written=manifest.weight_bytes,
        pruning=pruning,
        tokenisation=job.tokenisation,
    )


@dataclass(slots=True, kw_only=True)
class _Job:
    """One export, checked as far as can be before the first weight is read."""

    name: str
    selection: Selection
    settings: ExportSettings
    expected: ExpectedTensors
    weights: WeightFiles
    tokenizer: Any
    base: ExpertPruning | None
    base_type: str
    vocabulary: TrimmedVocabulary | None
    tokenisation: Mapping[str, TokenisationChange]
    tensors: int = 0
    bytes_kept: int = 0
    bytes_read: int = 0

    @classmethod
    def of(
        cls,
        path_or_id: str | Path,
        selection: Selection,
        settings: ExportSettings,
        text: ParallelText | None,
        *,
        partial: Path,
        disk: int | None,
    ) -> _Job:
        folder, name = model_folder(path_or_id), model_name(path_or_id)
        config = read_config(folder)
        family, base = family_of(config), pruning_of(config)
        spec = require_sparse(family.spec(config), path_or_id)
        _check_masks(selection.masks, spec, name)
        if base is not None:
            _check_base(base, selection, spec)
        expected = expected_tensors(family, config, spec, selection.kept)
        tokenizer = load_tokenizer(path_or_id)
        vocabulary = None if text is None else _trimmed(folder, tokenizer, selection, text, config.vocab_size)
        return cls(
            name=name,
            selection=selection,
            settings=settings,
            expected=expected,
            weights=weight_files(
                path_or_id,
                wanted=expected.wanted,
                scratch=partial,
                disk=disk,
                written=max(0, _about(expected, selection, settings, config) - _written(partial)),
            ),
            tokenizer=tokenizer,
            base=base,
            base_type=family.model_type,
            vocabulary=vocabulary,
            tokenisation=_tokenisation(folder, tokenizer, vocabulary, text),
        )

    @property
    def folder(self) -> Path:
        """Where the small files of the base model are."""
        return self.weights.folder

    def signature(self) -> dict[str, Any]:
        """Return what decides the bytes that are written."""
        return {
            "model": self.name,
            "revision": self.weights.revision,
            "masks": self.selection.masks.signature,
            "directions": ["-".join(each) for each in self.selection.directions],
            "vocabulary": None if self.vocabulary is None else settings_digest({"rows": list(self.vocabulary.rows)}),
            **self.settings.to_json(),
        }

    def sources(self) -> list[list[str | int]]:
        """Return what tells weight files of a folder from others of their names; a commit tells those of the Hub."""
        if self._fetched:
            return []
        found = [(file, (self.folder / file).stat()) for file in self.weights.files]
        return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in found]

    def write(self, writer: CheckpointWriter, progress: Progress | None) -> None:
        """Write all weights."""
        conversion, check = self._conversion(), RouterCheck(self.selection.masks, self.expected.routers)
        names = self.weights.names()
        if names is not None:
            self._check_names(names)
        for files in _together(self.weights):
            if names is not None and all(writer.finished(part) for part in self._part_ids(files)):
                continue  # of a killed run: nothing is fetched again
            with _opened(self.weights, files) as stored:
                if names is None:
                    names = {each.name: files[0] for each in stored}
                    self._check_names(names)
                kept = self._kept(stored, names)
                check.see(kept)
                self._count(files, kept)
                for part, members in self._parts(kept).items():
                    outputs = [output for each in members for output in conversion.outputs(each)]
                    writer.write(_part_id(part, files), outputs, name=part, progress=progress)
                    self.bytes_read += 0 if self._fetched else sum(each.nbytes for each in members)

    def _part_ids(self, files: Sequence[str]) -> list[str]:
        return [_part_id(part, files) for part in self._parts([])]

    @property
    def _fetched(self) -> bool:
        return self.weights.revision is not None

    def _count(self, files: Sequence[str], kept: Sequence[StoredTensor]) -> None:
        self.tensors += len(kept)
        self.bytes_kept += sum(each.nbytes for each in kept)
        routers = sum(each.nbytes for each in kept if each.name in self.expected.routers)  # looked at before
        self.bytes_read += sum(self.weights.size(file) or 0 for file in files) if self._fetched else routers

    def _check_names(self, names: Collection[str]) -> None:
        missing = self.expected.missing(names)
        unknown = sorted(name for name in names if not self.expected.known(name))
        if missing or unknown:
            problem = f"lacks `{missing[0]}`" if missing else f"holds `{unknown[0]}`, which it must not"
            raise UsageError(
                f"`{self.name}` must hold the tensors of a {self.base_type} model, but {problem}; it is incomplete or "
                "of another model."
            )

    def _kept(self, stored: Iterable[StoredTensor], names: Collection[str]) -> list[StoredTensor]:
        """Return the tensors to write: of tied ones the one that a loader would take."""
        second = {name for group in self.expected.tied for name in [each for each in group if each in names][1:]}
        kept = [each for each in stored if self.expected.wanted(each.name) and each.name not in second]
        for each in kept:
            if each.shape != self.expected.shape(each.name):
                raise UsageError(
                    f"`{each.name}` must have the shape {self.expected.shape(each.name)}, but has {each.shape} instead."
                )
        return kept

    def _parts(self, kept: Sequence[StoredTensor]) -> dict[str | None, list[StoredTensor]]:
        """Return what goes into the files of each part; all into those of one, unless parts are asked for."""
        if not self.settings.parts:
            return {None: list(kept)}
        sides = self.selection.sides()
        found: dict[str | None, list[StoredTensor]] = {DENSE: []}
        found |= {part_name(*side): [] for side in sides}
        for each in kept:
            expert = self.expected.experts.get(each.name)
            if expert is None:
                found[DENSE].append(each)
                continue
            for (stack, key), mask in sides.items():
                if stack == expert.stack and expert.expert in mask[expert.layer]:
                    found[part_name(stack, key)].append(each)
        return found

    def _conversion(self) -> Conversion:
        embeddings = {name for group in self.expected.tied for name in group}
        return Conversion(
            dtype=self.settings.dtype,
            scheme=self.settings.scheme,
            matrices={name for name, expert in self.expected.experts.items() if expert.matrix},
            rows=None if self.vocabulary is None else self.vocabulary.rows,
            embeddings=embeddings | ({"lm_head.weight"} & set(self.expected.dense)),
        )

    def small_files(self, pruning: ExpertPruning, evaluation: str | None) -> dict[str, bytes]:
        """Return the files beside the weights."""
        card = model_card(self.folder, pruning, self.settings, evaluation=evaluation, tokenisation=self.tokenisation)
        return small_files(self.folder, self.selection, pruning, self.settings, self.vocabulary, card=card)

    def pruning(self, writer: CheckpointWriter) -> ExpertPruning:
        """Return what the checkpoint says of itself."""
        masks, base = self.selection.masks, self.base
        return ExpertPruning(
            base_model=self.name if base is None else base.base_model,
            base_revision=self.weights.revision if base is None else base.base_revision,
            base_type=self.base_type,
            fingerprint=masks.fingerprint,
            kept=self.selection.kept,
            sources=self.selection.sources,
            targets=self.selection.targets,
            directions=self.selection.listed,
            tokens=self._tokens(),
            masks=masks.signature,
            plan=_in_short(masks.plan),
            scheme=self.settings.scheme,
            vocabulary=self._pieces(),
            parts=writer.parts() if self.settings.parts else None,
        )

    def _tokens(self) -> dict[str, int]:
        """Return the ids of the languages' tokens, as they are in the checkpoint that is written."""
        tokens = {code: language_id(self.tokenizer, code) for code in known_languages(self.tokenizer)}
        if self.vocabulary is None:
            return tokens
        new = {old: number for number, old in enumerate(self.vocabulary.rows)}
        return {code: new[old] for code, old in tokens.items() if code in self.vocabulary.languages}

    def _pieces(self) -> dict[str, int] | None:
        if self.vocabulary is None:
            return None if self.base is None or self.base.vocabulary is None else dict(self.base.vocabulary)
        return {"pieces": len(self.vocabulary.rows), "before": self.vocabulary.rows_before}


def _check_masks(masks: MaskSet, spec: ModelSpec, name: str) -> None:
    if masks.stacks != spec.stacks:
        raise UsageError(
            f"`masks` must be for the sparse layers of `{name}`, but are for those of {masks.model_name}. "
            "Plan masks from statistics of this model."
        )


def _check_base(base: ExpertPruning, selection: Selection, spec: ModelSpec) -> None:
    base.check_holds(selection.kept, spec.stacks)
    if base.scheme is not None:
        raise UsageError(
            f"The experts of the model must be floats to be exported, but are in {base.scheme.name}; export them from "
            f"{base.base_model}."
        )


def _trimmed(folder: Path, tokenizer: Any, selection: Selection, text: ParallelText, rows: int) -> TrimmedVocabulary:
    spoken = sorted({*selection.sources, *selection.targets}) or list(known_languages(tokenizer))
    lines = (line for code in spoken for line in text.lines(code))
    return trimmed(folder, lines, spoken, padded_rows=rows)


def _part_id(part: str | None, files: Sequence[str]) -> str:
    return f"{part or 'model'} of {files[0]}"


def _written(partial: Path) -> int:
    """Return the bytes of weights that a killed run left."""
    return sum(path.stat().st_size for path in partial.glob("shards/*")) if partial.is_dir() else 0


def _about(expected: ExpectedTensors, selection: Selection, settings: ExportSettings, config: Any) -> int:
    """Return about how many bytes are going to be written."""
    stored = getattr(config, "dtype", None) or torch.float32
    width = (settings.dtype or stored).itemsize
    scheme = settings.scheme
    bits = 8 * width if scheme is None else scheme.bits
    dense = sum(map(math.prod, [*expected.dense.values(), *expected.router_shapes.values()]))
    experts = sum(map(math.prod, expected.expert_shapes.values()))
    if settings.parts:  # what sides share is written for each of them
        once = sum(map(size, selection.kept.values()))
        experts = experts * sum(map(size, selection.sides().values())) // once
    return dense * width + experts * bits // 8


def _tokenisation(
    folder: Path, tokenizer: Any, vocabulary: TrimmedVocabulary | None, text: ParallelText | None
) -> dict[str, TokenisationChange]:
    """Return what becomes of the first lines of each language that the model knows."""
    if vocabulary is None or text is None:
        return {}
    known = [code for code in known_languages(tokenizer) if code in text.languages]
    return tokenisation_changes(folder, vocabulary, {code: text.lines(code)[:_REPORTED] for code in known})


def _together(weights: WeightFiles) -> list[tuple[str, ...]]:
    """Return the files that are open at once: all of a folder, one of what is fetched."""
    if weights.revision is None:
        return [weights.files]
    return [(file,) for file in weights.files]


@contextmanager
def _opened(weights: WeightFiles, files: Sequence[str]) -> Iterator[list[StoredTensor]]:
    with ExitStack() as stack:
        yield [stored for file in files for stored in stack.enter_context(weights.opened(file))]


_REPORTED = 500  # lines of each language
_LONG = ("guard", "layer_search", "measured", "ratio_search", "notes", "statistics", "bytes")


def _in_short(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how masks were chosen, without the records that the masks beside them hold."""
    short = {name: value for name, value in plan.items() if name not in _LONG}
    if "statistics" in plan:
        short["statistics"] = plan["statistics"].get("digest")
    if "guard" in plan:
        short["guard"] = "passed" if not plan["guard"]["failed"] else f"failed by {', '.join(plan['guard']['failed'])}"
    return short
