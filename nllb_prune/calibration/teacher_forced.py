"""One teacher-forced pass over parallel text: references go through the decoder, the observer counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune.calibration.observer import PARTS, StatisticsObserver
from nllb_prune.calibration.statistics import TEXT, ExpertStatistics, Granularity
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction, split_direction
from nllb_prune.model.loading import dtype_name, require_sparse
from nllb_prune.model.routing import ModelRouting, routing, routing_of
from nllb_prune.tokenization import batches_by_length, encode, pad
from nllb_prune.worklist import BYTES_RESULTS, Progress, WorkItem, run_items

BATCH_POSITIONS = 4096
IGNORED = -100


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    text: ParallelText,
    directions: Sequence[Direction],
    *,
    sentences: int | None = None,
    granularity: Granularity = "language",
    folder: Path,
    restart: bool = False,
    progress: Progress | None = None,
) -> ExpertStatistics:
    """Add up what each expert does over the text of the directions.

    A direction is one item of work: it owns its batches, so its sums are the same bytes whoever makes them.

    Args:
        model: A sparse model from `load_model`, unmasked.
        tokenizer: Its tokenizer.
        text: Aligned lines, for calibration only: never the lines that are reported on.
        directions: Source and target languages.
        sentences: Lines of each direction; all by default.
        granularity: `language` keeps encoder sums by source and decoder sums by target, `pair` both by direction.
        folder: Keeps the sums of each finished direction, so that a killed run continues.
        restart: Throw away what the folder holds of other settings.
        progress: Wraps the loop over directions.

    Raises:
        UsageError: on a dense model, a pruned or masked one, or text without one of the languages.
    """
    state = routing_of(model)
    spec = require_sparse(state.spec, state.name)
    _check_unmasked(state)
    if not directions:
        raise UsageError("`directions` must be one or more, but are none.")
    text = text if sentences is None else text.head(sentences)
    assert spec.fingerprint is not None
    signature: dict[str, str | int | float] = {
        "model": state.name,
        "mode": "references",
        "sentences": len(text.lines(directions[0][0])),
        "dtype": dtype_name(model),
        "batch_positions": BATCH_POSITIONS,
    }

    work = _Work(model, tokenizer, text, signature, granularity)
    items = [WorkItem(f"{source}-{target}") for source, target in directions]
    parts = run_items(
        items,
        folder,
        settings=work.settings,
        compute=work.compute,
        results=BYTES_RESULTS,
        restart=restart,
        progress=progress,
    )
    named = zip(items, parts, strict=True)
    return ExpertStatistics.merge_all(
        [ExpertStatistics.from_bytes(part, name=f"{folder / item.id}.bin") for item, part in named]
    )


def _check_unmasked(state: ModelRouting) -> None:
    if state.resident is not None:
        raise UsageError("`model` must hold all its experts to be calibrated, but is pruned; load it without a mask.")
    if any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError("`model` must route over all its experts to be calibrated, but has masks set; clear them.")


@dataclass(frozen=True, slots=True)
class _Work:
    model: nn.Module
    tokenizer: Any
    text: ParallelText
    signature: Mapping[str, str | int | float]
    granularity: Granularity

    def settings(self, item: WorkItem) -> dict[str, str | int | float]:
        """Return what the sums of a direction depend on."""
        identity = routing_of(self.model).identity
        return {**self._signature(item), "identity": identity, "granularity": self.granularity}

    def _signature(self, item: WorkItem) -> dict[str, str | int | float]:
        return {**self.signature, **{TEXT + code: self.text.digest(code) for code in split_direction(item.id)}}

    def compute(self, item: WorkItem) -> bytes:
        """Return the statistics file of a direction."""
        spec, direction = routing_of(self.model).spec, split_direction(item.id)
        observer = StatisticsObserver(spec, device=next(self.model.parameters()).device)
        lines = self.text.lines(direction[0]), self.text.lines(direction[1])
        observe_direction(self.model, self.tokenizer, lines, direction, observer)
        tables = {
            (name, spec.stack(name).key(*direction) if self.granularity == "language" else item.id): table
            for name, table in observer.tables().items()
        }
        signature = self._signature(item)
        return ExpertStatistics(spec, self.granularity, tables, items=(item.id,), signature=signature).to_bytes()


@torch.inference_mode()
def observe_direction(
    model: Any,
    tokenizer: Any,
    lines: tuple[Sequence[str], Sequence[str]],
    direction: Direction,
    observer: StatisticsObserver,
) -> None:
    """Run the aligned lines of one direction through the model, observed."""
    sources, targets = (encode(tokenizer, side, code) for side, code in zip(lines, direction, strict=True))
    device = next(model.parameters()).device
    lengths = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
    for group in batches_by_length(lengths, positions=BATCH_POSITIONS):
        source = pad([sources[n] for n in group], tokenizer.pad_token_id)
        labels = pad([targets[n] for n in group], IGNORED)
        decoder_input = pad([[tokenizer.eos_token_id, *targets[n][:-1]] for n in group], tokenizer.pad_token_id)
        observer.classes = {
            "encoder": encoder_classes(source, tokenizer.eos_token_id).to(device),
            "decoder": decoder_classes(labels, tokenizer.eos_token_id).to(device),
        }
        with routing(model, observer=observer):
            memory = model.get_encoder()(
                input_ids=source.to(device), attention_mask=source.ne(tokenizer.pad_token_id).to(device)
            )
            model.get_decoder()(
                input_ids=decoder_input.to(device),
                encoder_hidden_states=memory.last_hidden_state,
                encoder_attention_mask=source.ne(tokenizer.pad_token_id).to(device),
                use_cache=False,
            )


def encoder_classes(source: Tensor, end: int) -> Tensor:
    """Return the class of each encoder position ``(rows, length)``: the code, the words, `</s>`."""
    parts = PARTS["encoder"]
    classes = torch.full_like(source, parts.index("inner"))
    classes[source == end] = parts.index("end")
    classes[:, 0] = parts.index("language")
    return classes


def decoder_classes(labels: Tensor, end: int) -> Tensor:
    """Return the class of each decoder position ``(rows, length)``, by the label it predicts and what it reads."""
    parts = PARTS["decoder"]
    classes = torch.full_like(labels, parts.index("inner"))
    classes[:, 1:2] = parts.index("language")
    classes[labels == end] = parts.index("end")
    classes[:, 0] = parts.index("start")
    return classes
