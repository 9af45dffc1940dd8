"""What a streamed calibration will take, before it begins: memory, and bytes to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.calibration.collectors import Sizes
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.streamed_plan import Chunk, Costs, PlannedBatch
from nllb_prune.calibration.tables import SAMPLES
from nllb_prune.model.spec import ModelSpec
from nllb_prune.model.streamed_layers import StreamedBlocks
from nllb_prune.model.teacher_forcing import BATCH_POSITIONS
from nllb_prune.planning.memory import show_bytes

_PER_EXPERT = 48
"""Bytes for each token and expert while the routing is counted: ranks and probabilities, 64 bits each."""
_COPIES = 8
"""States of a batch within a layer: normed, queries, keys, values, mixed, merged and sums."""
_PER_CHOICE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a streamed calibration will take."""

    memory: int
    """Bytes beside those of the program, at most."""
    reading: int
    """Bytes of weights, at most."""
    sentences: int
    """Pairs of all directions."""
    chunks: int

    def __str__(self) -> str:
        each = -(-self.sentences // max(1, self.chunks))
        return (
            f"{self.sentences:,} sentence pairs in {self.chunks:,} chunk{'s' * (self.chunks != 1)} of about {each:,}; "
            f"at most {show_bytes(self.memory)} of memory beside the program's own and {show_bytes(self.reading)} to "
            "be read"
        )


def costs_of(blocks: StreamedBlocks, spec: ModelSpec, *, collect: Iterable[str], sizes: Sizes) -> Costs:
    """Return the bytes of what is held while a chunk is on its way."""
    groups, item = tuple(collect), blocks.weights.dtype.itemsize
    state = sizes.d_model * item
    experts = max(stack.experts for stack in spec.stacks)
    observer = StatisticsObserver(spec, collect=groups, sizes=sizes, device="meta")
    sums = sum(tensor.nbytes for tensor in observer.state().values())
    if "reservoir" in groups:  # it grows
        sums += SAMPLES * (4 * sizes.d_model + 16) * sum(len(stack.layers) for stack in spec.stacks)
    return Costs(state=state, sparse=3 * state + experts * item + spec.top_k * _PER_CHOICE, observer=sums)


def outlook_of(
    blocks: StreamedBlocks, spec: ModelSpec, costs: Costs, chunks: Sequence[Chunk], *, heads: int
) -> Outlook:
    """Return what chunks will take."""
    batches = [batch for chunk in chunks for batch in chunk]
    held = max((costs.of(chunk) for chunk in chunks), default=0)
    working = max((_batch_bytes(blocks, spec, costs, batch, heads=heads) for batch in batches), default=0)
    packed = 2 * costs.observer  # the file of a direction, and the arrays it is made of
    router = 0 if spec.parameters is None else 4 * spec.parameters.router
    return Outlook(
        memory=_weight_bytes(blocks) + router + held + working + packed,
        reading=sum(_chunk_reading(blocks, chunk, top_k=spec.top_k) for chunk in chunks),
        sentences=sum(len(batch.sentences) for batch in batches),
        chunks=len(chunks),
    )


def _parts(blocks: StreamedBlocks) -> list[Mapping[str, str]]:
    """Return the names of tensors that are in memory together: of a dense layer, or of an expert."""
    parts = [layer.tensors for layers in blocks.layers.values() for layer in layers]
    banks = (layer.bank for layers in blocks.layers.values() for layer in layers)
    return [*parts, *(bank.tensors[bank.expert_ids[0]] for bank in banks if bank is not None)]


def _weight_bytes(blocks: StreamedBlocks) -> int:
    """Return the weights that are in memory at once: one part, and a tensor as it is stored."""
    weights, parts = blocks.weights, _parts(blocks)
    largest = max(weights.stored_bytes({"": name}) for names in parts for name in names.values())
    return max(weights.bytes(names) for names in parts) + largest


def _batch_bytes(blocks: StreamedBlocks, spec: ModelSpec, costs: Costs, batch: PlannedBatch, *, heads: int) -> int:
    """Return what is in memory while a batch is in a layer, or as many tokens in an expert."""
    longest = max(batch.source, batch.target) // len(batch.sentences)
    rows, item = max(batch.source, batch.target, BATCH_POSITIONS), blocks.weights.dtype.itemsize
    experts = max(stack.experts for stack in spec.stacks)
    attention = 2 * heads * longest * item
    return rows * (_COPIES * costs.state + 2 * _widest(blocks) * item + experts * _PER_EXPERT + attention)


def _widest(blocks: StreamedBlocks) -> int:
    """Return the largest width within a layer: that between the matrices of a feed-forward part."""
    return max(max(blocks.weights.shape(name)) for names in _parts(blocks) for name in names.values())


def _chunk_reading(blocks: StreamedBlocks, chunk: Chunk, *, top_k: int) -> int:
    """Return the bytes that a chunk reads at most: each layer, and of its experts as many as tokens can choose."""
    weights, total = blocks.weights, 0
    rows = weights.shape(blocks.embedding)[0]
    for stack, layers in blocks.layers.items():
        positions = [batch.source if stack == "encoder" else batch.target for batch in chunk]
        tokens, embedded = sum(positions), sum(min(count, rows) for count in positions)
        total += embedded * weights.stored_bytes({"": blocks.embedding}) // rows
        for layer in layers:
            total += weights.stored_bytes(layer.tensors)
            if layer.bank is not None:
                total += min(len(layer.bank.expert_ids), top_k * tokens) * layer.bank.stored_bytes
    return total
