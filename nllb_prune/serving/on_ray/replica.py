"""A replica: a translator in a process of a Ray cluster, which tells Ray whose languages it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.expert_mask import union
from nllb_prune.serving.http.backend import Ask, Description, LocalBackend, ReplicaState
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.sides import LanguageSide
from nllb_prune.serving.texts import TranslatedText
from nllb_prune.serving.translator import Translator


class Replica:
    """A translator in a process of the cluster.

    Ray routes by target language: requests carry it as the id of a multiplexed model, the replica tells which it has
    had lately, as many as it can hold, and Ray prefers a replica that has it. Experts come and go as in any translator;
    that Ray lets go of a language moves none, and disturbs no sentence.

    Args:
        model: As of `Translator`.
        kept_languages: Target languages that are kept to a replica; by default as many as its memory holds.
        named: What else `Translator` takes, but the masks: their file is in the `user_config` of the deployment.
    """

    def __init__(self, model: str, *, kept_languages: int | None = None, **named: Any) -> None:
        self._model, self._kept_languages, self._named = model, kept_languages, named
        self._config: Mapping[str, Any] | None = None
        self._translator: Translator | None = None

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Open the translator with the masks of a configuration, or change its masks to them.

        Ray calls this before the first request, when the configuration of the deployment changes, and at times when it
        has not.

        Raises:
            UsageError: if the masks are not right; those before them stay.
        """
        if user_config == self._config:
            return
        masks = user_config.get("masks")
        if self._translator is None:
            self._open(await asyncio.to_thread(Translator, self._model, masks, **self._named))
        elif masks is None:
            raise UsageError("`masks` must be a file to change to, but is None instead.")
        else:
            await asyncio.to_thread(self._translator.reload, masks)
        self._backend = LocalBackend(self._opened, masks=None if masks is None else Path(masks))
        self._config = dict(user_config)

    def _open(self, translator: Translator) -> None:
        from ray import serve

        async def kept(target: str) -> str:
            return target

        self._translator = translator
        self._name: str = serve.get_replica_context().replica_id.unique_id
        self._targets = frozenset(target for _, target in translator.directions)
        count = self._kept_languages or languages_held(translator.plan, translator.sides(), self._targets)
        self._keep = serve.multiplexed(kept, max_num_models_per_replica=count)

    @property
    def _opened(self) -> Translator:
        if self._translator is None:
            raise Unavailable("`user_config` must have the file of masks, or null, as `masks`, but is missing.")
        return self._translator

    async def describe(self) -> Description:
        """Return what is served."""
        return await self._backend.describe()

    async def translate(self, ask: Ask) -> list[TranslatedText]:
        """Translate; when the request is cancelled, so are its sentences."""
        await self._note(ask.target)
        return await self._backend.translate(ask)

    async def stream(self, ask: Ask) -> AsyncGenerator[str | TranslatedText, None]:
        """Yield the parts of the one text, then the whole."""
        await self._note(ask.target)
        async with aclosing(self._backend.stream(ask)) as parts:
            async for part in parts:
                yield part

    async def _note(self, target: str) -> None:
        """Let Ray know that a language is here."""
        if target in self._targets:
            await self._keep(target)

    async def sides_of(self, source: str, target: str, *, full: bool) -> tuple[LanguageSide, ...]:
        """Return whose experts a direction uses, by stack."""
        return self._opened.sides_of(source, target, full=full)

    async def state(self) -> ReplicaState:
        """Return what the translator is doing."""
        [state] = await self._backend.states()
        return replace(state, name=self._name)

    async def reload(self) -> Description:
        """Read the file of masks again."""
        return await self._backend.reload()

    async def check_health(self) -> None:
        """Let Ray start another replica in place of one that cannot translate.

        Raises:
            Unavailable: if it cannot.
        """
        if not self._opened.open:
            raise Unavailable("The translator must be open, but has ended.")

    def __del__(self) -> None:
        """Finish what is under way: Ray calls this when it has waited for its requests, and sends no more."""
        if self._translator is not None:
            self._translator.close()


def languages_held(plan: MemoryPlan, sides: Collection[LanguageSide], targets: Collection[str]) -> int:
    """Return how many target languages the slots of decoders hold at once, the largest first."""
    decoders = sorted((side for side in sides if side.stack != "encoder"), key=lambda side: -side.bytes)
    held = 0
    while held < len(decoders):
        together = union(side.mask for side in decoders[: held + 1])
        if any(len(ids) > slots for ids, slots in zip(together, plan.slots[decoders[0].stack], strict=True)):
            break
        held += 1
    return max(1, len(targets) * held // max(1, len(decoders)))
