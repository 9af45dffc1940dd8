"""The backend that asks replicas on a Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from nllb_prune.errors import Unavailable
from nllb_prune.serving.http.backend import Ask, Description, ReplicaState
from nllb_prune.serving.sides import LanguageSide
from nllb_prune.serving.texts import TranslatedText

_TRIES = 2
"""Of a request: translating has no side effects, so what was lost with one replica is asked of another, once."""

_PATIENCE = 10.0
"""Seconds for answers that need no translating."""

_DIED = "The replicas that were asked have died; try again later."


class RayBackend:
    """Asks replicas on a Ray cluster.

    A request whose replica dies is asked of another one, once; a stream, as long as nothing of it was passed on. If all
    replicas are gone, requests wait for new ones.

    Args:
        replicas: Handle of the deployment.
    """

    def __init__(self, replicas: Any) -> None:
        self._replicas, self._open = replicas, True

    @property
    def open(self) -> bool:
        """Whether it may be asked; `describe` tells whether there is a replica that answers."""
        return self._open

    async def wait(self) -> None:
        """Wait until there is a replica that answers, however long it takes to load a model."""
        await self._asked(self._replicas.describe.remote)

    async def describe(self) -> Description:
        """Return what is served."""
        found: Description = await self._asked(self._replicas.describe.remote, patience=_PATIENCE)
        return found

    async def translate(self, ask: Ask) -> list[TranslatedText]:
        """Translate; when the task is cancelled, so is the work of the replica."""
        handle = self._replicas.options(multiplexed_model_id=ask.target)
        found: list[TranslatedText] = await self._asked(lambda: handle.translate.remote(ask))
        return found

    async def stream(self, ask: Ask) -> AsyncGenerator[str | TranslatedText, None]:
        """Yield the parts of the one text, then the whole; whoever stops early ends the work of the replica."""
        handle = self._replicas.options(multiplexed_model_id=ask.target, stream=True)
        for tried in range(1, _TRIES + 1):
            begun, parts = False, handle.stream.remote(ask)
            try:
                async for part in parts:
                    begun = True
                    yield part
                return
            except (asyncio.CancelledError, GeneratorExit):
                parts.cancel()
                raise
            except Exception as error:
                if begun or tried == _TRIES or not _died(error):
                    raise _meaning(error) from None

    async def sides_of(self, source: str, target: str, *, full: bool) -> tuple[LanguageSide, ...]:
        """Return whose experts a direction uses, by stack, as the replica has it that translates into the language."""
        handle = self._replicas.options(multiplexed_model_id=target)
        found: tuple[LanguageSide, ...] = await self._asked(
            lambda: handle.sides_of.remote(source, target, full=full), patience=_PATIENCE
        )
        return found

    async def states(self) -> list[ReplicaState]:
        """Return what each replica is doing that is running."""
        return sorted(await self._of_all("state"), key=lambda state: state.name)

    async def reload(self) -> Description:
        """Let every replica read its file of masks again; those that start later do so anyway.

        Raises:
            UsageError: if one of them cannot. Where all read the same content, none can, and nothing has changed.
        """
        [description, *_] = await self._of_all("reload", patience=None)
        found: Description = description
        return found

    async def close(self, *, drain: bool) -> None:
        """Ask no more. Replicas belong to the application, which ends them after what they are translating."""
        self._open = False

    async def _asked(self, ask: Callable[[], Any], *, patience: float | None = None) -> Any:
        for tried in range(1, _TRIES + 1):
            response = ask()
            try:
                async with asyncio.timeout(patience):
                    return await _or_cancelled(response)
            except Exception as error:
                if tried == _TRIES or not _died(error):
                    raise _meaning(error) from None
        raise AssertionError

    async def _of_all(self, method: str, *, patience: float | None = _PATIENCE) -> list[Any]:
        """Return what all running replicas answer, but those that die meanwhile."""
        try:
            answers = await self._replicas.broadcast(method).results_async(timeout_s=patience, return_exceptions=True)
        except Exception as error:
            raise _meaning(error) from None
        for answer in answers:
            if isinstance(answer, Exception) and not _died(answer):
                raise _meaning(answer) from None
        found = [answer for answer in answers if not isinstance(answer, Exception)]
        if not found:
            raise Unavailable(_DIED)
        return found


async def _or_cancelled(response: Any) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _died(error: Exception) -> bool:
    """Return whether an answer is missing because a replica died, or the machine that had it."""
    from ray.exceptions import ObjectLostError, RayActorError

    return isinstance(error, RayActorError | ObjectLostError)


def _meaning(error: Exception) -> BaseException:
    """Return what to raise for something that Ray raised: what a replica raised, or that there is none."""
    from ray.exceptions import RayTaskError
    from ray.serve.exceptions import DeploymentUnavailableError

    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        return cause
    if isinstance(error, TimeoutError):
        return Unavailable("No replica has answered in time; try again later.")
    return Unavailable(_DIED) if _died(error) or isinstance(error, DeploymentUnavailableError) else error
