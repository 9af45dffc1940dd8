"""Calibration of a model far larger than memory: all batches of a chunk go through one layer, then through the next.

The dense weights of a layer are read once for all of them, and each expert that any of their tokens is routed to.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

from nllb_prune.calibration.pairing import Lines
from nllb_prune.calibration.streamed_outlook import Outlook, outlook_of
from nllb_prune.calibration.streamed_plan import Chunk, Costs, PlannedBatch, batches_of, chunks_of, steps_of
from nllb_prune.calibration.streamed_run import StreamedRun, Work
from nllb_prune.calibration.streamed_state import StreamedState, load_state, save_state
from nllb_prune.errors import UsageError
from nllb_prune.model.routing import routing_of
from nllb_prune.model.streamed_layers import StreamedBlocks
from nllb_prune.planning.memory import show_bytes
from nllb_prune.result_files import settings_digest
from nllb_prune.worklist import Progress


class StreamedPass:
    """Observes directions, chunk by chunk; a mapper of the work list.

    After each sparse layer it writes down how far it is, so that a killed run goes on from there.

    Args:
        work: What is found out about each direction.
        blocks: Of its model.
        items: All directions, done or not.
        costs: Bytes of what is held.
        memory: Bytes of states and sums to be held at once.
        path: Where to write down how far it is.
        progress: Wraps the loop over steps.
    """

    def __init__(
        self,
        work: Work,
        blocks: StreamedBlocks,
        items: Sequence[Lines],
        *,
        costs: Costs,
        memory: int,
        path: Path,
        progress: Progress | None = None,
    ) -> None:
        self.work, self.blocks, self.items, self.costs = work, blocks, items, costs
        self.memory, self.path, self.progress = memory, path, progress

    def chunks(self, items: Iterable[Lines]) -> list[Chunk]:
        """Return what goes through the layers together.

        Raises:
            UsageError: if not even one batch fits into memory.
        """
        batches: list[PlannedBatch] = []
        for item in items:
            sources, targets = ([len(ids) for ids in side] for side in self.work.pairs(item))
            batches += batches_of(item.id, sources, targets)
        least = max((self.costs.of([batch]) for batch in batches), default=0)
        if least > self.memory:
            raise UsageError(
                f"`stream_memory` must be {show_bytes(least)} or more to hold one batch and the sums of its direction, "
                f"but is {show_bytes(self.memory)} instead."
            )
        return chunks_of(batches, self.costs, memory=self.memory)

    def outlook(self, items: Iterable[Lines]) -> Outlook:
        """Return what directions will take, begun from the start."""
        model, chunks = self.work.model, self.chunks(items)
        heads = model.config.encoder_attention_heads
        return outlook_of(self.blocks, routing_of(model).spec, costs=self.costs, chunks=chunks, heads=heads)

    def __call__(self, pending: Sequence[Lines]) -> Generator[tuple[Lines, bytes], None, None]:
        """Yield each direction with its statistics file when it is done."""
        saved, planned = self._saved(pending)
        chunks, steps = self.chunks(planned), steps_of(self.blocks)
        run = StreamedRun(self.work, self.blocks, {item.id: item for item in planned}, chunks, steps)
        begun, wanted, digest = (0, 0), {item.id for item in pending}, self._digest(planned)
        if saved is not None:
            run.resume(saved.chunk, saved.tensors)
            begun = saved.chunk, saved.steps
            saved = None  # or its tensors would stay in memory
        places = [(chunk, step) for chunk in range(len(chunks)) for step in range(len(steps))]
        for chunk, step in (self.progress or _plain)([place for place in places if place >= begun]):
            run.step(chunk, step)
            if step + 1 == len(steps):
                yield from ((item, content) for item, content in run.finished(chunk) if item.id in wanted)
            state = StreamedState(
                digest=digest,
                items=tuple(item.id for item in planned),
                chunk=chunk,
                steps=step + 1,
                tensors=run.tensors(),
            )
            save_state(self.path, state)

    def _digest(self, items: Iterable[Lines]) -> str:
        """Hash all that states and sums depend on."""
        return settings_digest({"memory": self.memory, "items": {item.id: self.work.settings(item) for item in items}})

    def _saved(self, pending: Sequence[Lines]) -> tuple[StreamedState | None, Sequence[Lines]]:
        """Return what a killed run left, if it was this run, and the directions it was planned for."""
        if not self.path.exists():
            return None, pending
        saved, known = load_state(self.path), {item.id: item for item in self.items}
        if saved is not None and {item.id for item in pending} <= set(saved.items) <= set(known):
            planned = [known[name] for name in saved.items]
            if saved.digest == self._digest(planned):
                return saved, planned
        warnings.warn(
            f"`{self.path}` is of a run with other directions, settings or memory, or damaged: what it had of "
            "directions that are not finished is not used",
            stacklevel=2,
        )
        return None, pending


def _plain(items: Iterable[Any]) -> Iterable[Any]:
    return items
