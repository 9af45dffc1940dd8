"""`export`: a model and masks to a smaller checkpoint, one weight file at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nllb_prune.corpus import ParallelText
from nllb_prune.exporting.job import Job
from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.settings import USUAL, ExportSettings
from nllb_prune.exporting.tokenisation import TokenisationChange
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.weights.partial import partial_path
from nllb_prune.weights.writer import CheckpointWriter
from nllb_prune.worklist import Progress


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
    job = Job.of(
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
