"""A batch on its way through the layers of a streamed model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.teacher_forced import decoder_classes, encoder_classes
from nllb_prune.model.blocks import DecoderCall, EncoderCall, encoder_call
from nllb_prune.model.routing import RoutedTokens
from nllb_prune.model.streamed_layers import StreamedBlocks
from nllb_prune.model.teacher_forcing import ForcedBatch, embed_forced, forced_call


class StreamedBatch:
    """States of a batch between two layers.

    Args:
        blocks: The model.
        tokens: What goes through it.
        masks: Experts that may be used by stack, one row each; `None` for all.
        observer: Of its direction.
        states: Where it is; by default it has not begun.
        memory: The encoder's output, once the encoder is done.
    """

    def __init__(
        self,
        blocks: StreamedBlocks,
        tokens: ForcedBatch,
        *,
        masks: Mapping[str, Tensor] | None,
        observer: StatisticsObserver,
        states: Tensor | None = None,
        memory: Tensor | None = None,
    ) -> None:
        self.blocks, self.tokens, self.masks = blocks, tokens, masks or {}
        self.observer = _BatchObserver(observer, tokens, end=blocks.end)
        self.memory = memory
        self._states, self._call = states, self._resumed(states)

    @property
    def states(self) -> Tensor:
        """The states ``(rows, positions, d_model)``."""
        assert self._states is not None, "a stack has begun"
        return self._states

    @property
    def positions(self) -> Tensor | None:
        """Indices of the tokens among rows x positions; `None` when none is padding."""
        assert self._call is not None, "a stack has begun"
        return self._call.positions

    def begin(self, stack: str) -> None:
        """Embed the tokens of a stack."""
        batch = self.tokens
        states = self.blocks.embed_source(batch.source) if stack == "encoder" else embed_forced(self.blocks, batch)
        self._states, self._call = states, self._call_of(stack, states)

    def run(self, stack: str, layer: int) -> None:
        """Go through a layer."""
        if isinstance(self._call, EncoderCall):
            self._states = self.blocks.encoder[layer](self.states, self._call)
        else:
            assert isinstance(self._call, DecoderCall)
            assert self.memory is not None
            block = self.blocks.decoder[layer]
            self._states = block(self.states, block.source(self.memory), self._call)

    def end(self, stack: str) -> None:
        """Keep what is wanted of a stack that is done."""
        if stack == "encoder":
            self.memory = self.blocks.finish_encoder(self.states)
        self._states = self._call = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what another needs to be where this one is."""
        held = {"states": self._states, "memory": self.memory}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def _resumed(self, states: Tensor | None) -> EncoderCall | DecoderCall | None:
        return None if states is None else self._call_of("encoder" if self.memory is None else "decoder", states)

    def _call_of(self, stack: str, like: Tensor) -> EncoderCall | DecoderCall:
        keep = self.masks.get(stack)
        if stack == "encoder":
            return encoder_call(self.blocks, self.tokens.source, like=like, keep=keep)
        return forced_call(self.blocks, self.tokens, like=like, keep=keep)


class _BatchObserver:
    """Tells the observer of a direction which batch it hears of: batches take turns at each layer."""

    def __init__(self, observer: StatisticsObserver, batch: ForcedBatch, *, end: int) -> None:
        self._observer, self.wants_outputs = observer, observer.wants_outputs
        self._classes = {"encoder": encoder_classes(batch.source, end), "decoder": decoder_classes(batch.labels, end)}
        self._ids = {"encoder": batch.source, "decoder": batch.decoder_input}

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Pass on what a sparse layer did."""
        self._turn()
        self._observer.observe(stack, layer, routed)

    def observe_outputs(self, stack: str, layer: int, routed: RoutedTokens, values: Tensor, order: Tensor) -> Tensor:
        """Pass on what experts computed."""
        self._turn()
        return self._observer.observe_outputs(stack, layer, routed, values, order)

    def _turn(self) -> None:
        self._observer.classes, self._observer.ids = self._classes, self._ids
