"""Experts come into the slots of a model while it runs, and leave them: the mechanism, which decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from nllb_prune.model.expert_store import ExpertStore, Place
from nllb_prune.model.move import Move
from nllb_prune.model.quantised_bank import Bank

Layer = tuple[str, int]
"""Stack, and number of the sparse layer in it."""


@dataclass(slots=True)
class Copying:
    """Moves under way."""

    moves: Sequence[Move]
    future: Future[None] | None = None
    copied: list[Move] = field(default_factory=list)
    """Those whose copy is made, or begun on the device's stream."""
    on_device: Any = None
    """Event of a CUDA device after the last copy, where it copies by itself."""


class Pager:
    """The slots of a model's banks.

    An expert is not found in its slot any more before the slot is written to, and the next one not before all of it is
    there, so no token ever meets half an expert. All methods belong to the thread that runs the model; only copies are
    made by another, on a CUDA device in a stream of their own.

    Args:
        banks: Made with `slots`, by layer.
        store: Where experts come from.
    """

    def __init__(self, banks: Mapping[Layer, Bank], store: ExpertStore) -> None:
        self.banks, self.store = banks, store
        self.bytes_copied = 0
        """So far."""
        self._places = {layer: places_of(bank) for layer, bank in banks.items()}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert-pager")
        self._broken_off = False
        device = next(iter(banks.values())).slot_of.device if banks else torch.device("cpu")
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def begin(self, moves: Sequence[Move]) -> Copying:
        """Let experts leave and start to copy others into their slots."""
        for layer, here in _by_layer(moves).items():
            leaving = [move.leaves for move in here if move.leaves is not None]
            if leaving:
                self.banks[layer].slot_of[leaving] = -1
        copying = Copying(moves)
        if self._stream is not None:  # what was begun may still read the slots
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        copying.future = self._thread.submit(self._copy, copying)
        return copying

    def done(self, copying: Copying) -> bool:
        """Return whether there is nothing to wait for."""
        assert copying.future is not None
        return copying.future.done() and (copying.on_device is None or bool(copying.on_device.query()))

    def finish(self, copying: Copying) -> None:
        """Wait for the copies and let the experts that came be found.

        Raises:
            Exception: what stopped a copy; those before it in `Copying.copied` came, the other slots are empty.
        """
        assert copying.future is not None
        error = copying.future.exception()
        if copying.on_device is not None:
            copying.on_device.wait()  # the model's stream waits, not the processor
        for layer, here in _by_layer(copying.copied).items():
            self.banks[layer].slot_of[[move.expert for move in here]] = torch.tensor(
                [move.slot for move in here], device=self.banks[layer].slot_of.device
            )
        if error is not None:
            raise error

    def _copy(self, copying: Copying) -> None:
        with torch.cuda.stream(self._stream), torch.inference_mode():
            try:
                for move in copying.moves:
                    if self._broken_off:
                        return
                    places = self._places[move.stack, move.layer][move.slot]
                    self.bytes_copied += self.store.copy((move.stack, move.layer, move.expert), places)
                    copying.copied.append(move)
            finally:
                if self._stream is not None:
                    copying.on_device = self._stream.record_event()

    def close(self, *, finish: bool = True) -> None:
        """Wait for what is under way, or break it off after the next expert, and let go of the store."""
        self._broken_off = not finish
        self._thread.shutdown()
        self.store.close()


def places_of(bank: Bank) -> list[dict[str, Place]]:
    """Return the places of each slot by parameter."""
    return [{name: Place(tensor[slot]) for name, tensor in bank.named_parameters()} for slot in range(bank.slots)]


def _by_layer(moves: Iterable[Move]) -> dict[Layer, list[Move]]:
    layers: dict[Layer, list[Move]] = {}
    for move in moves:
        layers.setdefault((move.stack, move.layer), []).append(move)
    return layers
