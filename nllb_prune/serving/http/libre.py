"""LibreTranslate's format, the one that clients of translation servers speak."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from nllb_prune.languages import language
from nllb_prune.serving.http.answers import Json
from nllb_prune.serving.http.asked import Asked, texts_of
from nllb_prune.serving.http.codes import AUTO, api_code
from nllb_prune.serving.http.detection import Detected
from nllb_prune.serving.http.fields import read_fields
from nllb_prune.serving.http.pieces import Answered
from nllb_prune.serving.http.problems import missing
from nllb_prune.serving.http.schemas import (
    KEY,
    Detection,
    DetectRequest,
    FrontendSettings,
    Language,
    Status,
    Translated,
    TranslateRequest,
    problems,
    request_body,
)
from nllb_prune.serving.http.settings import UNLIMITED
from nllb_prune.serving.http.state import ServerState

_TIMEOUT = 500  # milliseconds that pages wait after the last key


def libre_routes(state: ServerState) -> APIRouter:
    """Return the routes of LibreTranslate."""
    routes = APIRouter(tags=["LibreTranslate"])

    @routes.post(
        "/translate",
        response_model=Translated,
        responses=problems(400, 403, 408, 413, 429, 500, 503),
        openapi_extra=request_body(TranslateRequest, form=True),
        dependencies=KEY,
        summary="Translate a text or a list of texts",
    )
    async def translate(request: Request) -> Json:
        fields, served = await read_fields(request), state.ready()
        asked = state.enter(request, fields, served.offer.asked)
        return Json(_translated(asked, await state.desk.translate(request, served, asked)))

    @routes.post(
        "/detect",
        response_model=list[Detection],
        responses=problems(400, 403, 408, 413, 429, 500, 503),
        openapi_extra=request_body(DetectRequest, form=True),
        dependencies=KEY,
        summary="Find out which language a text is in",
    )
    async def detect(request: Request) -> Json:
        fields, served = await read_fields(request), state.ready()
        state.door.enter(request, fields)
        if fields.get("q") in (None, "", []):
            raise missing("q")
        texts = texts_of(fields["q"])
        served.offer.check_sizes(texts, listed=len(texts) > 1)
        found = await asyncio.to_thread(served.detector.detect, texts[:1])
        return Json([detection(each) for each in found[0]])

    @routes.get(
        "/languages",
        response_model=list[Language],
        responses=problems(500, 503),
        summary="Languages, and those that each is translated into",
    )
    async def languages() -> Json:
        return Json(state.ready().languages.listed)

    @routes.get(
        "/frontend/settings",
        response_model=FrontendSettings,
        responses=problems(500, 503),
        summary="What a page wants to know",
    )
    async def settings() -> Json:
        target = state.ready().languages.usual_target()
        limits = state.settings
        return Json(
            {
                "charLimit": limits.characters or UNLIMITED,
                "batchLimit": limits.texts or UNLIMITED,
                "frontendTimeout": _TIMEOUT,
                "apiKeys": limits.keys is not None,
                "keyRequired": state.door.key_required,
                "suggestions": False,
                "filesTranslation": False,
                "supportedFilesFormat": [],
                "language": {
                    "source": {"code": AUTO, "name": "Auto Detect"},
                    "target": {"code": api_code(target), "name": language(target).name},
                },
            }
        )

    @routes.get("/health", response_model=Status, responses=problems(500), summary="Whether the server is alive")
    async def health() -> Json:
        return Json({"status": "ok"})

    @routes.get(
        "/ready", response_model=Status, responses=problems(500, 503), summary="Whether the server can translate"
    )
    async def ready() -> Json:
        state.ready()
        return Json({"status": "ready"})

    return routes


def detection(found: Detected) -> dict[str, Any]:
    """Return a language that a text may be in, as clients know it."""
    return {"language": api_code(found.code), "confidence": found.confidence}


def _translated(asked: Asked, answers: list[Answered]) -> dict[str, Any]:
    """Return an answer whose parts are lists if and only if a list was asked for."""
    found: dict[str, list[Any]] = {"translatedText": [answer.text for answer in answers]}
    if asked.source is None:
        found["detectedLanguage"] = [detection(answer.detected) for answer in answers if answer.detected is not None]
    if asked.alternatives:
        found["alternatives"] = [list(answer.alternatives) for answer in answers]
    return found if asked.listed else {name: values[0] for name, values in found.items()}
