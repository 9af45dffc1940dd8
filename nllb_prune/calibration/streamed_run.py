"""The steps of a streamed calibration: all batches of a chunk go through some layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.pairing import Lines
from nllb_prune.calibration.streamed_batch import StreamedBatch
from nllb_prune.calibration.streamed_plan import Chunk, Step
from nllb_prune.model.routing import routing
from nllb_prune.model.streamed_layers import StreamedBlocks, add_update
from nllb_prune.model.teacher_forcing import forced_batch
from nllb_prune.result_files import Settings


class Work(Protocol):
    """What is to be found out about each direction."""

    @property
    def model(self) -> Any:
        """From `load_streamed`."""

    def settings(self, item: Lines) -> Settings:
        """Return what the sums of a direction depend on."""

    def pairs(self, item: Lines) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        """Return the tokens of its sources and of its targets."""

    def masks_of(self, item: Lines) -> Mapping[str, Tensor] | None:
        """Return the experts that may be used, one row a stack."""

    def observer(self, item: Lines) -> StatisticsObserver:
        """Return what adds up its sums, from zero."""

    def packed(self, item: Lines, observer: StatisticsObserver) -> bytes:
        """Return the statistics file of sums."""


class StreamedRun:
    """Chunks on their way, one after the other.

    Args:
        work: What is found out.
        blocks: Of the model.
        items: The directions by id.
        chunks: What goes through the layers together, all of it.
        steps: Of each chunk.
    """

    def __init__(
        self,
        work: Work,
        blocks: StreamedBlocks,
        items: Mapping[str, Lines],
        chunks: Sequence[Chunk],
        steps: Sequence[Step],
    ) -> None:
        self.work, self.blocks, self.items, self.chunks, self.steps = work, blocks, items, chunks, steps
        self._observers: dict[str, StatisticsObserver] = {}
        self._batches: list[StreamedBatch] = []

    @torch.inference_mode()
    def step(self, chunk: int, step: int) -> None:
        """Do a step of a chunk."""
        if not self._batches:
            self._batches = self._made(self.chunks[chunk], {})
        layers = self.steps[step]
        if layers.layers.start == 0:
            for batch in self._batches:
                batch.begin(layers.stack)
        last = step + 1 == len(self.steps)
        for layer in layers.layers:
            if not self._layer(layers.stack, layer, last=last):
                break
        if layers.last:
            for batch in self._batches:
                batch.end(layers.stack)
        if last:
            self._batches = []

    def _layer(self, stack: str, number: int, *, last: bool) -> bool:
        """Run a layer; return whether what follows is of interest."""
        layer = self.blocks.layers[stack][number]
        with layer.held(), layer.deferred() as calls:
            for batch in self._batches:
                with routing(self.work.model, observer=batch.observer):
                    batch.run(stack, number)
        if layer.bank is None:
            return True
        if last and not self._batches[0].observer.wants_outputs:
            return False  # nobody looks at what the last experts make
        for batch, update in zip(self._batches, layer.bank.run(calls), strict=True):
            add_update(batch.states, batch.positions, update)
        return not last

    def finished(self, chunk: int) -> Iterator[tuple[Lines, bytes]]:
        """Yield the directions that end with a chunk, each with its statistics file, and let go of them."""
        later = {batch.item for each in self.chunks[chunk + 1 : chunk + 2] for batch in each}
        for name in [name for name in self._observers if name not in later]:
            yield self.items[name], self.work.packed(self.items[name], self._observers.pop(name))

    def tensors(self) -> dict[str, Tensor]:
        """Return states and sums, to be written down."""
        tensors: dict[str, Tensor] = {}
        for number, batch in enumerate(self._batches):
            tensors |= {f"batch/{number}/{name}": tensor for name, tensor in batch.tensors().items()}
        for item, observer in self._observers.items():
            tensors |= {f"sums/{item}/{name}": tensor for name, tensor in observer.state().items()}
        return tensors

    def resume(self, chunk: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` returned within a chunk or, when there are no states in it, behind one."""
        for item in dict.fromkeys(name.split("/")[1] for name in tensors if name.startswith("sums/")):
            self._observer(item).restore(_within(tensors, f"sums/{item}/"))
        if any(name.startswith("batch/") for name in tensors):
            self._batches = self._made(self.chunks[chunk], tensors)

    def _observer(self, item: str) -> StatisticsObserver:
        if item not in self._observers:
            self._observers[item] = self.work.observer(self.items[item])
        return self._observers[item]

    def _made(self, chunk: Chunk, tensors: Mapping[str, Tensor]) -> list[StreamedBatch]:
        """Return the batches of a chunk, with their states if they have some."""
        made = []
        pairs = {name: self.work.pairs(self.items[name]) for name in dict.fromkeys(batch.item for batch in chunk)}
        for number, batch in enumerate(chunk):
            sources, targets = ([side[n] for n in batch.sentences] for side in pairs[batch.item])
            held = _within(tensors, f"batch/{number}/")
            made.append(
                StreamedBatch(
                    self.blocks,
                    forced_batch(self.work.model, sources, targets),
                    masks=self.work.masks_of(self.items[batch.item]),
                    observer=self._observer(batch.item),
                    states=held.get("states"),
                    memory=held.get("memory"),
                )
            )
        return made


def _within(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
