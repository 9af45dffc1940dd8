"""`calibrate`: text to statistics, one item of work for each direction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from nllb_prune.calibration.collectors import Sizes
from nllb_prune.calibration.fields import ONCE, collected
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.own_outputs import own_targets
from nllb_prune.calibration.pairing import Lines, every_line, spread
from nllb_prune.calibration.statistics import TEXT, ExpertStatistics, Granularity, Setting
from nllb_prune.calibration.tables import Table
from nllb_prune.calibration.teacher_forced import BATCH_POSITIONS, observe_pairs
from nllb_prune.calibration.weights import weight_tables
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import dtype_name, require_sparse
from nllb_prune.model.routing import ModelRouting, mask_rows, routing_of
from nllb_prune.tokenization import encode, language_id
from nllb_prune.worklist import BYTES_RESULTS, Progress, compute_items, iterate_items, missing_items, settings_digest

Mode = Literal["references", "outputs"]


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
) -> ExpertStatistics:
    """Add up what each expert does over the text of the directions.

    A direction is one item of work: it owns its batches, so its sums are the same bytes whoever makes them.

    Args:
        model: A sparse model from `load_model`, unmasked.
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
        progress: Wraps the loop over directions.

    Raises:
        UsageError: on a dense model, a pruned or masked one, text or masks without one of the languages, unknown
            groups, or settings that contradict each other.
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
) -> Calibration:
    """Return what `calibrate` does in two steps: the items, and their sum; arguments and errors are those of it."""
    state = routing_of(model)
    _check_usable(state, directions, masks=masks)
    check_mode(mode, beams)
    text = text if sentences is None else text.head(sentences)
    lines = len(text.lines(directions[0][0]))
    if not lines:
        raise UsageError("`text` must have a line or more, but has none.")
    items = _items(directions, lines, pairs_per_target)
    signature: dict[str, Setting] = {
        "model": state.name,
        "mode": mode if mode == "references" else f"outputs, {'greedy' if beams == 1 else f'beam {beams}'}",
        "sentences": lines,
        **({} if pairs_per_target is None else {"pairs_per_target": items[0].end, "spread": _spread_digest(items)}),
        **({} if masks is None else {"masks": masks.signature}),
        "dtype": dtype_name(model),
        "batch_positions": BATCH_POSITIONS,
    }
    work = _Work(model, tokenizer, text, signature, granularity, collected(collect), mode, beams, masks)
    return Calibration(tuple(items), folder, work)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A run of `calibrate` that checked what it was given; made by `prepare`."""

    items: tuple[Lines, ...]
    """What is to be observed, by all shards together."""
    folder: Path
    _work: _Work

    def observe(
        self, *, shard: tuple[int, int] = (0, 1), restart: bool = False, progress: Progress | None = None
    ) -> None:
        """Write the result of each item of a shard to the folder, and keep none of them."""
        work = self._work
        compute_items(
            _sharded(self.items, shard),
            self.folder,
            settings=work.settings,
            compute=work.compute,
            results=BYTES_RESULTS,
            restart=restart,
            progress=progress,
        )

    def missing(self) -> list[str]:
        """Return the ids of items that the folder has no result of."""
        return [item.id for item in missing_items(self.items, self.folder, results=BYTES_RESULTS)]

    def statistics(self, *, shard: tuple[int, int] = (0, 1)) -> ExpertStatistics:
        """Add up the results of a shard, one after the other; nothing is computed."""
        items = _sharded(self.items, shard)
        results = iterate_items(items, self.folder, settings=self._work.settings, results=BYTES_RESULTS)
        names = (f"{self.folder / item.id}.bin" for item in items)
        return ExpertStatistics.merge_all(
            ExpertStatistics.from_bytes(content, name=name) for name, content in zip(names, results, strict=True)
        )


def _check_usable(state: ModelRouting, directions: Sequence[Direction], *, masks: MaskSet | None) -> None:
    spec = require_sparse(state.spec, state.name)
    if state.resident is not None:
        raise UsageError("`model` must hold all its experts to be calibrated, but is pruned; load it without a mask.")
    if any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError("`model` must route over all its experts to be calibrated, but has masks set; clear them.")
    if not directions:
        raise UsageError("`directions` must be one or more, but are none.")
    if masks is not None:
        masks.check_model(spec)
        for direction in directions:  # one without masks is refused now, not when its turn comes
            masks.direction(*direction)


def check_mode(mode: str, beams: int) -> None:
    """Refuse a mode that there is not, and beams where nothing is searched for."""
    if mode not in get_args(Mode):
        raise UsageError(f"`mode` must be one of {', '.join(get_args(Mode))}, but is {mode} instead.")
    if mode == "references" and beams != 1:
        raise UsageError(
            f"`beams` must be left out with the mode references, which searches for nothing, but is {beams} instead. "
            "The mode outputs searches."
        )


def _items(
    directions: Sequence[Direction], lines: int, pairs_per_target: int | Literal["all"] | None
) -> Sequence[Lines]:
    if pairs_per_target is None:
        return every_line(directions, lines=lines)
    return spread(directions, lines=lines, per_target=None if pairs_per_target == "all" else pairs_per_target)


def _spread_digest(items: Sequence[Lines]) -> str:
    """Return what tells one spread from another: a short hash of the lines of all its directions."""
    return settings_digest({item.id: [item.first, item.step, item.end] for item in items})


def _sharded(items: Sequence[Lines], shard: tuple[int, int]) -> Sequence[Lines]:
    number, count = shard
    if not 0 <= number < count:
        raise UsageError(f"`shard` must be 0 to {count - 1} of {count}, but is {number} instead.")
    if count > len(items):
        raise UsageError(f"`shard` must be of {len(items)} at most, one direction each, but is of {count} instead.")
    return items[number::count]


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
        spec = routing_of(self.model).spec
        tables = {
            (name, spec.stack(name).key(*item.direction) if self.granularity == "language" else item.id): table
            for name, table in self._observed(item).tables().items()
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

    def _observed(self, item: Lines) -> StatisticsObserver:
        device = next(self.model.parameters()).device
        masks = None if self.masks is None else mask_rows(self.masks, [item.direction], device=device)
        sources = encode(self.tokenizer, item.of(self.text.lines(item.direction[0])), item.direction[0])
        targets = self._targets(item, sources, masks)
        vocabulary, d_model = self.model.get_input_embeddings().weight.shape
        seed = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:7], "little")
        sizes = Sizes(vocabulary=vocabulary, d_model=d_model, seed=seed)
        observer = StatisticsObserver(routing_of(self.model).spec, collect=self.collect, sizes=sizes, device=device)
        backward = "gradients" in self.collect
        observe_pairs(self.model, sources, targets, observer, masks=masks, backward=backward)
        return observer

    def _targets(
        self, item: Lines, sources: Sequence[Sequence[int]], masks: Mapping[str, Tensor] | None
    ) -> Sequence[Sequence[int]]:
        code = item.direction[1]
        if self.mode == "references":
            return encode(self.tokenizer, item.of(self.text.lines(code)), code)
        language, end = language_id(self.tokenizer, code), self.tokenizer.eos_token_id
        return own_targets(self.model, sources, language=language, end=end, beams=self.beams, masks=masks)

    @cached_property
    def _weights(self) -> dict[str, Table]:
        return weight_tables(self.model) if ONCE in self.collect else {}
