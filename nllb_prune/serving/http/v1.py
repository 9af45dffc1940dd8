"""What LibreTranslate's format has no word for: streams, configurations, the experts at work, reload."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.expert_mask import size
from nllb_prune.languages import language
from nllb_prune.serving.http.answers import Json, dumps
from nllb_prune.serving.http.asked import Asked
from nllb_prune.serving.http.backend import Description, ReplicaState
from nllb_prune.serving.http.codes import ServedLanguages, api_code
from nllb_prune.serving.http.desk import unless_gone
from nllb_prune.serving.http.fields import read_fields
from nllb_prune.serving.http.libre import detection
from nllb_prune.serving.http.pieces import Answered
from nllb_prune.serving.http.problems import Problem
from nllb_prune.serving.http.records import fault
from nllb_prune.serving.http.schemas import (
    KEY,
    Configurations,
    FullTranslated,
    FullTranslateRequest,
    Reloaded,
    Residency,
    problems,
    request_body,
)
from nllb_prune.serving.http.served import Served
from nllb_prune.serving.http.state import ServerState
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.sides import LanguageSide

_EVENT = {
    "type": "object",
    "properties": {"event": {"enum": ["part", "done", "error"]}, "data": {"type": "string", "description": "JSON"}},
    "required": ["event", "data"],
}
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events: `part` with `text`, again and again; then `done` with the answer of "
        "`/v1/translate`, or `error` with `error`",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}


def v1_routes(state: ServerState) -> APIRouter:
    """Return the routes under `/v1`."""
    routes = APIRouter(prefix="/v1", tags=["Experts at work"])

    @routes.post(
        "/translate",
        response_model=FullTranslated,
        responses=problems(400, 403, 408, 413, 429, 500, 503),
        openapi_extra=request_body(FullTranslateRequest),
        dependencies=KEY,
        summary="Translate a text, and tell what went into it",
    )
    async def translate(request: Request) -> Json:
        fields, served = await read_fields(request), state.ready()
        asked = state.enter(request, fields, served.offer.asked_in_full)
        [answer] = await state.desk.translate(request, served, asked)
        return Json(await _whole(served, asked, answer))

    @routes.post(
        "/stream",
        response_class=StreamingResponse,
        responses={**_EVENTS, **problems(400, 403, 408, 413, 429, 500, 503)},
        openapi_extra=request_body(FullTranslateRequest),
        dependencies=KEY,
        summary="Translate a text, sentence by sentence as they are finished",
    )
    async def stream(request: Request) -> StreamingResponse:
        fields, served = await read_fields(request), state.ready()
        asked = state.enter(request, fields, served.offer.asked_in_full)
        parts = state.desk.stream(served, asked)
        try:
            first = await unless_gone(request, anext(parts))  # what is refused is refused before anything is sent
        except BaseException:
            await parts.aclose()
            raise
        return StreamingResponse(
            _events(request, served, asked, first, parts),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    @routes.get(
        "/configurations",
        response_model=Configurations,
        responses=problems(500, 503),
        summary="Languages, masks, experts and memory",
    )
    async def configurations() -> Json:
        served = state.ready()
        return Json(_configurations(served.description, served.languages, await served.backend.states()))

    @routes.get(
        "/residency",
        response_model=Residency,
        responses=problems(500, 503),
        summary="Which experts are in memory, and what has been moved",
    )
    async def residency() -> Json:
        return Json({"replicas": [_replica(each) for each in await state.ready().backend.states()]})

    @routes.post(
        "/admin/reload",
        response_model=Reloaded,
        responses=problems(400, 403, 500, 503),
        dependencies=KEY,
        summary="Read masks and keys again; needs the key of an administrator",
    )
    async def reload(request: Request) -> Json:
        state.door.enter_admin(request)
        try:
            return Json({"masks": (await state.reload()).masks})
        except Unavailable as error:
            raise Problem(503, str(error), retry_after=1.0) from None
        except (UsageError, OSError) as error:
            raise Problem(400, str(error)) from None

    return routes


async def _events(
    request: Request, served: Served, asked: Asked, first: str | Answered, parts: AsyncGenerator[str | Answered, None]
) -> AsyncIterator[bytes]:
    async with aclosing(parts):
        part = first
        try:
            while isinstance(part, str):
                yield _event("part", {"text": part})
                part = await anext(parts)
            yield _event("done", await _whole(served, asked, part))
        except Problem as problem:
            yield _event("error", {"error": problem.message})
        except Exception:
            yield _event("error", {"error": fault(request).message})


def _event(name: str, content: Any) -> bytes:
    return format_sse_event(event=name, data_str=dumps(content))


async def _whole(served: Served, asked: Asked, answer: Answered) -> dict[str, Any]:
    sides, work = await _sides(served, asked, answer), answer.work
    return {
        "translatedText": answer.text,
        "alternatives": list(answer.alternatives),
        "detectedLanguage": None if answer.detected is None else detection(answer.detected),
        "source": answer.source,
        "target": answer.target,
        "experts": _experts(sides, full=asked.full),
        "work": {
            "sourceTokens": work.source_tokens,
            "targetTokens": work.target_tokens,
            "secondsWaited": round(work.waited, 4),
            "secondsTranslating": round(work.translating, 4),
            "seconds": round(answer.seconds, 4),
        },
    }


async def _sides(served: Served, asked: Asked, answer: Answered) -> tuple[LanguageSide, ...]:
    """Return whose experts were used; a translation is not withheld because nobody can tell them any more."""
    if answer.source == answer.target:
        return ()
    try:
        return await served.backend.sides_of(answer.source, answer.target, full=asked.full)
    except UsageError:
        return ()


def _experts(sides: Sequence[LanguageSide], *, full: bool) -> dict[str, Any]:
    return {
        "choice": "all" if full else "kept",
        "kept": sum(size(side.mask) for side in sides),
        "of": sum(map(_whole_size, sides)),
        "bytes": sum(side.bytes for side in sides),
        "stacks": [
            {
                "stack": side.stack,
                "key": side.key,
                "layers": list(side.layers),
                "experts": side.experts_of_layer,
                "kept": [list(layer) for layer in side.mask],
            }
            for side in sides
        ],
    }


def _whole_size(side: LanguageSide) -> int:
    """Return how many experts a stack of the full model has."""
    return side.experts_of_layer * len(side.layers)


def _configurations(
    description: Description, languages: ServedLanguages, states: Sequence[ReplicaState]
) -> dict[str, Any]:
    resident = {(side.stack, side.key) for state in states for side in state.sides if side.resident}
    return {
        "model": description.model,
        "version": description.version,
        "masks": description.masks,
        "full": description.offers_full,
        "beams": description.beams,
        "languages": [
            {
                "code": code,
                "iso": api_code(code),
                "name": language(code).name,
                "source": code in languages.targets,
                "target": code in languages.into,
            }
            for code in languages.all
        ],
        "sides": [
            {
                "stack": side.stack,
                "key": side.key,
                "kept": size(side.mask),
                "of": _whole_size(side),
                "bytes": side.bytes,
                "resident": (side.stack, side.key) in resident,
            }
            for side in states[0].sides
        ],
        "memory": _memory(states[0].plan),
    }


def _replica(state: ReplicaState) -> dict[str, Any]:
    figures = state.figures
    return {
        "name": state.name,
        "resident": list(figures.resident),
        "sentences": figures.sentences,
        "waiting": figures.waiting,
        "inFlight": figures.in_flight,
        "steps": figures.steps,
        "rows": figures.rows,
        "sourceTokens": figures.source_tokens,
        "targetTokens": figures.target_tokens,
        "swaps": figures.swaps,
        "expertsMoved": figures.experts_moved,
        "bytesMoved": figures.bytes_moved,
        "workingPeak": figures.working_peak,
        "memory": _memory(state.plan),
    }


def _memory(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "fixed": plan.fixed,
        "experts": plan.experts,
        "working": plan.working,
        "total": plan.total,
        "paged": plan.paged,
    }
