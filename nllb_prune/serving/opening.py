"""From the name of a model to an engine that translates with it, within a memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.generation.footprint import Footprint, Rows
from nllb_prune.generation.translate import length_limit
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.decoding_sizes import DecodingSizes
from nllb_prune.model.loading import load_model
from nllb_prune.model.paged import Weighed, load_paged, weigh
from nllb_prune.model.pager import Pager
from nllb_prune.model.source import load_tokenizer
from nllb_prune.serving.engine import Engine
from nllb_prune.serving.memory import MemoryPlan, Needs, counts_of, largest_sides, plan_memory
from nllb_prune.serving.residency import Arrival, Residency, Side
from nllb_prune.serving.runner import ModelRunner, Room
from nllb_prune.serving.scheduler import Scheduler
from nllb_prune.serving.served import Served, Serving
from nllb_prune.serving.settings import Settings
from nllb_prune.serving.sides import LanguageSides, staying
from nllb_prune.tokenization import known_languages

_USUAL = Rows(32, 64, length_limit(64))
"""Sentences that a divided memory has room for at once, if that leaves enough for experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a translator works with."""

    model: nn.Module
    tokenizer: Any
    known: tuple[str, ...]
    """Languages of the tokenizer."""
    weighed: Weighed
    settings: Settings
    serving: Serving
    runner: ModelRunner
    engine: Engine
    pager: Pager | None


def open_model(
    path_or_id: str | Path,
    masks: MaskSet | None,
    settings: Settings,
    *,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> Opened:
    """Load a model, divide its memory, and bring in what is pinned, or everything if it fits.

    Raises:
        UsageError: as `load_model` does, and if the memory is too small.
    """
    tokenizer, place = load_tokenizer(path_or_id), torch.device(device or "cpu")
    positions = length_limit(settings.longest) + 1
    weighed = weigh(path_or_id, dtype=dtype, device=place, positions=positions)
    if weighed.sizes is None:
        raise UsageError(
            f"`model` must be of a family that is decoded here, but {weighed.spec.family} gives no blocks; use "
            "`translations`, which runs it through transformers."
        )
    masks = weighed.masks if masks is None else masks
    known = known_languages(tokenizer)
    sides = sides_of(weighed, masks, known, settings)
    pinned = sides.pinned(settings.pinned)
    footprint = partial(_footprint, weighed.sizes, weighed)
    plan = plan_memory(_needs(weighed, sides, pinned, footprint, settings), settings.memory)
    model, pager = _loaded(path_or_id, weighed, sides, plan, place)
    blocks = blocks_of(model)
    assert blocks is not None, "a family with sizes has blocks"
    blocks.reserve(positions)
    residency = Residency(sides.masks, plan.slots, pinned=pinned)
    served = Served(masks=masks, sides=sides, plan=plan, pinned=pinned, residency=residency)
    if pager is not None:
        try:
            bring_in(pager, residency, served.ahead)
        except BaseException:
            pager.close()
            raise
    serving = Serving(served, device=place)
    room = Room(rows=settings.rows, positions=settings.positions, working=plan.working)
    runner = ModelRunner(blocks, pager, device=place, room=room, footprint=footprint, keep=serving.keep)
    return Opened(
        model=model,
        tokenizer=tokenizer,
        known=known,
        weighed=weighed,
        settings=settings,
        serving=serving,
        runner=runner,
        engine=Engine(Scheduler(residency, patience=settings.patience), runner, place=serving.place),
        pager=pager,
    )


def sides_of(weighed: Weighed, masks: MaskSet | None, known: Sequence[str], settings: Settings) -> LanguageSides:
    """Return the sides that masks make of a model, of those known languages that are to be served.

    Raises:
        UsageError: as `LanguageSides` does.
    """
    return LanguageSides(
        weighed.spec,
        masks,
        weighed.pruning,
        known=known,
        languages=settings.languages,
        full=settings.full,
    )


def _loaded(
    path_or_id: str | Path, weighed: Weighed, sides: LanguageSides, plan: MemoryPlan, device: torch.device
) -> tuple[nn.Module, Pager | None]:
    if not weighed.spec.stacks:
        return load_model(path_or_id, dtype=weighed.dtype, device=device), None
    paged = load_paged(path_or_id, kept=sides.kept, slots=plan.slots, dtype=weighed.dtype, device=device)
    return paged.model, paged.pager


def bring_in(pager: Pager, residency: Residency, sides: Sequence[Side]) -> None:
    """Bring in sides before anything runs.

    Raises:
        UsageError: if they cannot be read.
    """
    if not sides:
        return
    swap = residency.swap(sides)
    assert swap is not None, "slots were made for them"
    copying = pager.begin(swap.moves)
    pager.finish(copying)
    residency.arrived(swap, Arrival(swap.moves))
    residency.touch(sides)


def _footprint(sizes: DecodingSizes, weighed: Weighed, beams: int) -> Footprint:
    return Footprint(sizes, weighed.spec, itemsize=weighed.dtype.itemsize, beams=beams, expanded=weighed.expanded)


def _needs(
    weighed: Weighed,
    sides: LanguageSides,
    pinned: Sequence[Side],
    footprint: partial[Footprint],
    settings: Settings,
) -> Needs:
    least, most = counts_of(sides.masks, pinned)
    one = Rows(1, settings.longest, length_limit(settings.longest))
    each, greedy = footprint(settings.beams), footprint(1)
    return Needs(
        fixed=weighed.fixed,
        expert=weighed.expert,
        least=least,
        most=most,
        least_working=each.cache(Rows(), one) + each.workspace(Rows(), one),
        usual_working=greedy.cache(Rows(), _USUAL) + greedy.workspace(Rows(), _USUAL),
        staying=frozenset(stack for stack, _ in staying(tuple(sides.masks))),
        largest=largest_sides(sides.masks),
    )
