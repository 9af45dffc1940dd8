"""What the HTTP application runs on: one translator in this process, or replicas elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nllb_prune._version import __version__
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import GREEDY
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.serving.figures import Figures
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.sides import LanguageSide
from nllb_prune.serving.texts import TranslatedText
from nllb_prune.serving.translator import Translator


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Texts to translate into one language."""

    texts: tuple[str, ...]
    sources: tuple[str, ...]
    """FLORES-200 code of each."""
    target: str
    search: SearchSettings = GREEDY
    full: bool = False
    """Whether to use all experts in place of those that the masks keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What is served."""

    model: str
    directions: tuple[Direction, ...]
    masks: str | None
    """Signature of the masks; `None` if there are none."""
    offers_full: bool
    beams: int
    """The most that may be asked for."""
    version: str = __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """A translator at work."""

    name: str
    figures: Figures
    plan: MemoryPlan
    sides: tuple[LanguageSide, ...]


class Backend(Protocol):
    """Translates. Requests that mean nothing to it raise `UsageError`, what it cannot do now `Unavailable`."""

    @property
    def open(self) -> bool:
        """Whether it can translate at all."""

    async def describe(self) -> Description:
        """Return what is served."""

    async def translate(self, ask: Ask) -> list[TranslatedText]:
        """Translate; when the task is cancelled, so is the work."""

    def stream(self, ask: Ask) -> AsyncGenerator[str | TranslatedText, None]:
        """Yield the translation of the one text part by part, and the whole at the end."""

    async def sides_of(self, source: str, target: str, *, full: bool) -> tuple[LanguageSide, ...]:
        """Return whose experts a direction uses, by stack."""

    async def states(self) -> list[ReplicaState]:
        """Return what each translator is doing."""

    async def reload(self) -> Description:
        """Read the masks again, and translate within them from now on."""

    async def close(self, *, drain: bool) -> None:
        """End, after what is being translated if it is to `drain`."""


class LocalBackend:
    """A translator in this process.

    Args:
        translator: Belongs to the backend from now on.
        masks: The file that its masks are from, which can be read again.
    """

    def __init__(self, translator: Translator, *, masks: Path | None = None) -> None:
        self._translator, self._masks = translator, masks
        self._described: tuple[MaskSet | None, Description] | None = None

    @property
    def open(self) -> bool:
        """Whether the translator can translate."""
        return self._translator.open

    async def describe(self) -> Description:
        """Return what is served; made anew only for other masks, as a signature of many takes a while."""
        masks = self._translator.masks
        if self._described is None or self._described[0] is not masks:
            self._described = masks, await asyncio.to_thread(describe, self._translator)
        return self._described[1]

    async def translate(self, ask: Ask) -> list[TranslatedText]:
        """Translate; when the task is cancelled, so are its sentences."""
        return await self._translator.translate_async(
            ask.texts, ask.sources, ask.target, search=ask.search, full=ask.full
        )

    async def stream(self, ask: Ask) -> AsyncGenerator[str | TranslatedText, None]:
        """Yield the parts of the one text, then the whole."""
        [in_flight] = await self._translator.submit_async(
            ask.texts, ask.sources, ask.target, search=ask.search, full=ask.full
        )
        async with aclosing(in_flight.parts_async()) as parts:
            async for part in parts:
                yield part
            yield await in_flight.result_async()

    async def sides_of(self, source: str, target: str, *, full: bool) -> tuple[LanguageSide, ...]:
        """Return whose experts a direction uses, by stack."""
        return self._translator.sides_of(source, target, full=full)

    async def states(self) -> list[ReplicaState]:
        """Return what the translator is doing."""
        return [state_of(self._translator, name="local")]

    async def reload(self) -> Description:
        """Read the file of masks again, if there is one.

        Raises:
            UsageError: if it is not right; nothing has changed then.
        """
        if self._masks is not None:
            await asyncio.to_thread(self._translator.reload, self._masks)
        return await self.describe()

    async def close(self, *, drain: bool) -> None:
        """End the translator."""
        await asyncio.to_thread(self._translator.close, drain=drain)


def describe(translator: Translator) -> Description:
    """Return what a translator serves."""
    return Description(
        model=translator.name,
        directions=translator.directions,
        masks=None if translator.masks is None else translator.masks.signature,
        offers_full=translator.offers_full,
        beams=translator.beams,
    )


def state_of(translator: Translator, *, name: str) -> ReplicaState:
    """Return what a translator is doing."""
    return ReplicaState(name=name, figures=translator.figures(), plan=translator.plan, sides=translator.sides())
