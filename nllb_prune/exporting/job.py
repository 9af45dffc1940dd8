"""`Job`: one export, from what is kept of a model to what is written of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.exporting.card import model_card
from nllb_prune.exporting.checks import check_base, check_masks, check_names
from nllb_prune.exporting.conversion import Conversion
from nllb_prune.exporting.outlook import left_to_write
from nllb_prune.exporting.record import record_of
from nllb_prune.exporting.router_check import RouterCheck
from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.exporting.small_files import small_files
from nllb_prune.exporting.tokenisation import TokenisationChange
from nllb_prune.exporting.trimming import changes_of, trimmed_for
from nllb_prune.exporting.vocabulary import TrimmedVocabulary
from nllb_prune.model.describe import require_sparse
from nllb_prune.model.expected import ExpectedTensors, expected_tensors
from nllb_prune.model.families import family_of
from nllb_prune.model.pruned import DENSE, ExpertPruning, part_name, pruning_of
from nllb_prune.model.source import load_tokenizer, model_folder, model_name, read_config
from nllb_prune.model.weight_files import WeightFiles, weight_files
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.writer import CheckpointWriter
from nllb_prune.worklist import Progress, settings_digest


@dataclass(slots=True, kw_only=True)
class Job:
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
    ) -> Job:
        """Check what was asked for, and find the weight files; arguments are those of `export`."""
        folder, name = model_folder(path_or_id), model_name(path_or_id)
        config = read_config(folder)
        family, base = family_of(config), pruning_of(config)
        spec = require_sparse(family.spec(config), path_or_id)
        check_masks(selection.masks, spec, name)
        if base is not None:
            check_base(base, selection, spec)
        expected = expected_tensors(family, config, spec, selection.kept)
        tokenizer = load_tokenizer(path_or_id)
        vocabulary = None if text is None else trimmed_for(folder, tokenizer, selection, text, config.vocab_size)
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
                written=left_to_write(expected, selection, settings, config, partial=partial),
            ),
            tokenizer=tokenizer,
            base=base,
            base_type=family.model_type,
            vocabulary=vocabulary,
            tokenisation=changes_of(folder, tokenizer, vocabulary, text),
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
            self._check(names)
        for files in _together(self.weights):
            if names is not None and all(writer.finished(part) for part in self._part_ids(files)):
                continue  # of a killed run: nothing is fetched again
            with _opened(self.weights, files) as stored:
                if names is None:
                    names = {each.name: files[0] for each in stored}
                    self._check(names)
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
        return record_of(
            self.selection,
            self.settings,
            model=self.name,
            revision=self.weights.revision,
            kind=self.base_type,
            base=self.base,
            tokenizer=self.tokenizer,
            vocabulary=self.vocabulary,
            parts=writer.parts() if self.settings.parts else None,
        )

    def _check(self, names: Collection[str]) -> None:
        check_names(self.expected, names, model=self.name, kind=self.base_type)


def _part_id(part: str | None, files: Sequence[str]) -> str:
    return f"{part or 'model'} of {files[0]}"


def _together(weights: WeightFiles) -> list[tuple[str, ...]]:
    """Return the files that are open at once: all of a folder, one of what is fetched."""
    if weights.revision is None:
        return [weights.files]
    return [(file,) for file in weights.files]


@contextmanager
def _opened(weights: WeightFiles, files: Sequence[str]) -> Iterator[list[StoredTensor]]:
    with ExitStack() as stack:
        yield [stored for file in files for stored in stack.enter_context(weights.opened(file))]
