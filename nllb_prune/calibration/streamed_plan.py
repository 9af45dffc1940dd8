"""What a streamed calibration does in which order: batches that share the reading of the experts, and its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nllb_prune.model.streamed_layers import StreamedBlocks
from nllb_prune.model.teacher_forcing import BATCH_POSITIONS
from nllb_prune.tokenization import batches_by_length

MEMORY = 4 * 10**9
"""Bytes of states and sums that are held at once, by default."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Sentence pairs of one direction that go through the model together."""

    item: str
    sentences: tuple[int, ...]
    """Their numbers among the lines of the direction."""
    source: int
    """Positions, padding included."""
    target: int


Chunk = tuple[PlannedBatch, ...]
"""Batches that go through a layer one after the other, so that each of its experts is read once for all."""


@dataclass(frozen=True, slots=True)
class Step:
    """Layers that are run in one go: up to a sparse one, or to the end of a stack."""

    stack: str
    layers: range
    last: bool
    """Whether the stack ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Bytes of what is held while a chunk is on its way."""

    state: int
    """A position, between two layers."""
    sparse: int
    """The same in a sparse layer, with what its experts are given and what they make of it."""
    observer: int
    """The sums of a direction."""

    def of(self, chunk: Iterable[PlannedBatch]) -> int:
        """Return the bytes of a chunk where it takes the most."""
        batches = list(chunk)
        source, target = sum(batch.source for batch in batches), sum(batch.target for batch in batches)
        states = max(source * self.sparse, source * self.state + target * self.sparse)
        return states + len({batch.item for batch in batches}) * self.observer


def batches_of(item: str, sources: Sequence[int], targets: Sequence[int]) -> list[PlannedBatch]:
    """Return the batches of a direction, given the lengths of its sentences: those of the pass in memory."""
    lengths = [max(pair) for pair in zip(sources, targets, strict=True)]
    return [
        PlannedBatch(item, tuple(group), *(len(group) * max(side[n] for n in group) for side in (sources, targets)))
        for group in batches_by_length(lengths, positions=BATCH_POSITIONS)
    ]


def chunks_of(batches: Iterable[PlannedBatch], costs: Costs, *, memory: int) -> list[Chunk]:
    """Put batches together as long as they fit into memory; a batch that fits nowhere goes alone."""
    chunks: list[list[PlannedBatch]] = []
    for batch in batches:
        if not chunks or costs.of([*chunks[-1], batch]) > memory:
            chunks.append([])
        chunks[-1].append(batch)
    return [tuple(chunk) for chunk in chunks]


def steps_of(blocks: StreamedBlocks) -> list[Step]:
    """Cut both stacks behind each sparse layer; what follows the last one goes with it."""
    steps: list[Step] = []
    for stack, layers in blocks.layers.items():
        ends = [number + 1 for number, layer in enumerate(layers) if layer.bank is not None]
        ends = [*ends[:-1], len(layers)]
        starts = [0, *ends[:-1]]
        steps += [Step(stack, range(a, b), b == len(layers)) for a, b in zip(starts, ends, strict=True)]
    return steps
