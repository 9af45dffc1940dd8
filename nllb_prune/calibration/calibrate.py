"""`calibrate`: text to statistics, one item of work for each direction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nllb_prune.calibration.checks import Mode, check_mode, check_streamed, check_usable
from nllb_prune.calibration.collectors import Sizes
from nllb_prune.calibration.fields import ONCE, collected
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.own_outputs import own_targets
from nllb_prune.calibration.pairing import Lines, chosen_lines, sharded, spread_digest
from nllb_prune.calibration.statistics import TEXT, ExpertStatistics, Granularity, Setting
from nllb_prune.calibration.streamed_outlook import Outlook, costs_of
from nllb_prune.calibration.streamed_pass import StreamedPass
from nllb_prune.calibration.streamed_plan import MEMORY
from nllb_prune.calibration.tables import Table
from nllb_prune.calibration.teacher_forced import BATCH_POSITIONS, observe_pairs
from nllb_prune.calibration.weights import weight_tables
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import dtype_name
from nllb_prune.model.routing import mask_rows, routing_of
from nllb_prune.model.streamed import streamed_blocks
from nllb_prune.tokenization import encode, language_id
from nllb_prune.worklist import BYTES_RESULTS, Progress, compute_items, iterate_items, missing_items

__all__ = ["Calibration", "Mode", "calibrate", "check_mode", "prepare"]


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    text: ParallelText,
    directions: Sequence[Direction],
    *,
    sentences: int | None = None,
    pairs_per_target: int | Literal["all"] | None = None,
    granularity: Granularity = "language",
    collect: Iterable[str] = ("core",),
    mode: Mode = "references",
    beams: int = 1,
    masks: MaskSet | None = None,
    shard: tuple[int, int] = (0, 1),
    folder: Path,
    restart: bool = False,
    progress: Progress | None = None,
    stream_memory: int = MEMORY,
) -> ExpertStatistics:
    """Add up what each expert does over the text of the directions.

    A direction is one item of work: it owns its batches, so its sums are the same bytes whoever makes them.

    Args:
        model: A sparse model from `load_model`, unmasked, or from `load_streamed`: then directions go through its
            layers together, and a killed run continues behind the last sparse layer.
        tokenizer: Its tokenizer.
        text: Aligned lines, for calibration only: never the lines that are reported on.
        directions: Source and target languages.
        sentences: Uses the first lines of the text only.
        pairs_per_target: Spreads so many lines of each target over its sources, or `all`; by default every direction
            runs over every line.
        granularity: `language` keeps encoder sums by source and decoder sums by target, `pair` both by direction.
        collect: Groups of `calibration.fields.GROUPS`, beside `core`.
        mode: Targets that go through the decoder: `references`, or the model's own `outputs`.
        beams: Of the search for outputs, and only there; 1 is greedy.
        masks: Observes the model within these masks, each direction within its own.
        shard: (number, of how many): every so-manieth item only. Shards that use one folder leave their results for a
            run without; shards on several machines are merged.
        folder: Keeps the sums of each finished direction, so that a killed run continues.
        restart: Throw away what the folder holds of these directions (of this shard).
        progress: Wraps the loop over directions; of a streamed model over sparse layers.
        stream_memory: Bytes of states and sums that a streamed model holds at once.

    Raises:
        UsageError: on a dense model, a pruned or masked one, text or masks without one of the languages, unknown
            groups, settings that contradict each other, or what cannot be found out of a streamed model.
    """
    run = prepare(
        model,
        tokenizer,
        text,
        directions,
        sentences=sentences,
        pairs_per_target=pairs_per_target,
        granularity=granularity,
        collect=collect,
        mode=mode,
        beams=beams,
        masks=masks,
        folder=folder,
        stream_memory=stream_memory,
    )
    run.observe(shard=shard, restart=restart, progress=progress)
    return run.statistics(shard=shard)


def prepare(
    model: nn.Module,
    tokenizer: Any,
    text: ParallelText,
    directions: Sequence[Direction],
    *,
    sentences: int | None = None,
    pairs_per_target: int | Literal["all"] | None = None,
    granularity: Granularity = "language",
    collect: Iterable[str] = ("core",),
    mode: Mode = "references",
    beams: int = 1,
    masks: MaskSet | None = None,
    folder: Path,
    stream_memory: int = MEMORY,
) -> Calibration:
    """Return what `calibrate` does in two steps: the items, and their sum; arguments and errors are those of it."""
    state = routing_of(model)
    check_usable(state, directions, masks=masks)
    check_mode(mode, beams)
    groups = collected(collect)
    if streamed_blocks(model) is not None:
        check_streamed(groups, mode)
    text = text if sentences is None else text.head(sentences)
    lines = len(text.lines(directions[0][0]))
    if not lines:
        raise UsageError("`text` must have a line or more, but has none.")
    items = chosen_lines(directions, lines, pairs_per_target)
    signature: dict[str, Setting] = {
        "model": state.name,
        "mode": mode if mode == "references" else f"outputs, {'greedy' if beams == 1 else f'beam {beams}'}",
        "sentences": lines,
        **({} if pairs_per_target is None else {"pairs_per_target": items[0].end, "spread": spread_digest(items)}),
        **({} if masks is None else {"masks": masks.signature}),
        **({} if state.backend is None else {"backend": state.backend}),
        "dtype": dtype_name(model),
        "batch_positions": BATCH_POSITIONS,
    }
    work = _Work(model, tokenizer, text, signature, granularity, groups, mode, beams, masks)
    return Calibration(tuple(items), folder, work, stream_memory)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A run of `calibrate` that checked what it was given; made by `prepare`."""

    items: tuple[Lines, ...]
    """What is to be observed, by all shards together."""
    folder: Path
    _work: _Work
    _stream_memory: int

    def observe(
        self, *, shard: tuple[int, int] = (0, 1), restart: bool = False, progress: Progress | None = None
    ) -> None:
        """Write the result of each item of a shard to the folder, and keep none of them."""
        work, streamed = self._work, self._streamed(shard, progress)
        if streamed is not None and restart:
            streamed.path.unlink(missing_ok=True)
        compute_items(
            sharded(self.items, shard),
            self.folder,
            settings=work.settings,
            compute=work.compute if streamed is None else None,
            mapper=streamed,
            results=BYTES_RESULTS,
            restart=restart,
            progress=progress if streamed is None else None,
        )
        if streamed is not None:
            streamed.path.unlink(missing_ok=True)

    def outlook(self, *, shard: tuple[int, int] = (0, 1), restart: bool = False) -> Outlook | None:
        """Return what a streamed model will take for the items that the folder has no result of; `None` of another."""
        streamed, items = self._streamed(shard), sharded(self.items, shard)
        if streamed is None:
            return None
        return streamed.outlook(items if restart else missing_items(items, self.folder, results=BYTES_RESULTS))

    def _streamed(self, shard: tuple[int, int], progress: Progress | None = None) -> StreamedPass | None:
        work = self._work
        if (blocks := streamed_blocks(work.model)) is None:
            return None
        return StreamedPass(
            work,
            blocks,
            sharded(self.items, shard),
            costs=costs_of(blocks, routing_of(work.model).spec, collect=work.collect, sizes=work.sizes()),
            memory=self._stream_memory,
            path=self.folder / f"streamed-{shard[0] + 1}-of-{shard[1]}.state",
            progress=progress,
        )

    def missing(self) -> list[str]:
        """Return the ids of items that the folder has no result of."""
        return [item.id for item in missing_items(self.items, self.folder, results=BYTES_RESULTS)]

    def statistics(self, *, shard: tuple[int, int] = (0, 1)) -> ExpertStatistics:
        """Add up the results of a shard, one after the other; nothing is computed."""
        items = sharded(self.items, shard)
        results = iterate_items(items, self.folder, settings=self._work.settings, results=BYTES_RESULTS)
        names = (f"{self.folder / item.id}.bin" for item in items)
        return ExpertStatistics.merge_all(
            ExpertStatistics.from_bytes(content, name=name) for name, content in zip(names, results, strict=True)
        )


@dataclass(frozen=True)
class _Work:
    model: Any
    tokenizer: Any
    text: ParallelText
    signature: Mapping[str, Setting]
    granularity: Granularity
    collect: tuple[str, ...]
    mode: Mode
    beams: int
    masks: MaskSet | None

    def settings(self, item: Lines) -> dict[str, Any]:
        """Return what the sums of a direction depend on."""
        identity = routing_of(self.model).identity
        chosen = {"lines": [item.first, item.step, item.end], "collect": list(self.collect)}
        return {**self._signature(item), **chosen, "identity": identity, "granularity": self.granularity}

    def _signature(self, item: Lines) -> dict[str, Setting]:
        return {**self.signature, **{TEXT + code: self.text.digest(code) for code in item.direction}}

    def compute(self, item: Lines) -> bytes:
        """Return the statistics file of a direction."""
        observer, masks = self.observer(item), self.masks_of(item)
        sources, targets = self.pairs(item)
        observe_pairs(self.model, sources, targets, observer, masks=masks, backward="gradients" in self.collect)
        return self.packed(item, observer)

    def packed(self, item: Lines, observer: StatisticsObserver) -> bytes:
        """Return the statistics file of what was observed."""
        spec = routing_of(self.model).spec
        tables = {
            (name, spec.stack(name).key(*item.direction) if self.granularity == "language" else item.id): table
            for name, table in observer.tables().items()
        }
        statistics = ExpertStatistics(
            spec,
            self.granularity,
            tables,
            items=(item.id,),
            signature=self._signature(item),
            collect=self.collect,
            weights=self._weights,
        )
        return statistics.to_bytes()

    def observer(self, item: Lines) -> StatisticsObserver:
        """Return what adds up the sums of a direction."""
        seed = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:7], "little")
        return StatisticsObserver(
            routing_of(self.model).spec, collect=self.collect, sizes=self.sizes(seed), device=self._device
        )

    def sizes(self, seed: int = 0) -> Sizes:
        """Return what collectors must know of the model."""
        vocabulary, d_model = self.model.get_input_embeddings().weight.shape
        return Sizes(vocabulary=vocabulary, d_model=d_model, seed=seed)

    def masks_of(self, item: Lines) -> Mapping[str, Tensor] | None:
        """Return the experts that may be used, one row a stack; `None` for all."""
        return None if self.masks is None else mask_rows(self.masks, [item.direction], device=self._device)

    def pairs(self, item: Lines) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]:
        """Return the tokens of the sources of a direction, and those that go through the decoder."""
        source, target = item.direction
        sources = encode(self.tokenizer, item.of(self.text.lines(source)), source)
        if self.mode == "references":
            return sources, encode(self.tokenizer, item.of(self.text.lines(target)), target)
        language, end, masks = language_id(self.tokenizer, target), self.tokenizer.eos_token_id, self.masks_of(item)
        return sources, own_targets(self.model, sources, language=language, end=end, beams=self.beams, masks=masks)

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @cached_property
    def _weights(self) -> dict[str, Table]:
        return weight_tables(self.model) if ONCE in self.collect else {}
