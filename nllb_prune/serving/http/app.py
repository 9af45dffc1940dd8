"""The application: routes, what requests pass on their way, and the life of the backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from nllb_prune._version import __version__
from nllb_prune.evaluation.detectors.identification import LanguageIdentifier, identifier_of
from nllb_prune.serving.http.body_limit import BodyLimit
from nllb_prune.serving.http.head import HeadAsGet
from nllb_prune.serving.http.libre import libre_routes
from nllb_prune.serving.http.metrics import CONTENT_TYPE
from nllb_prune.serving.http.problems import Problem
from nllb_prune.serving.http.records import Records
from nllb_prune.serving.http.settings import ServerSettings
from nllb_prune.serving.http.state import Opening, ServerState, log
from nllb_prune.serving.http.static import add_page
from nllb_prune.serving.http.v1 import v1_routes

_ABOUT = """\
Translation between all languages of a mixture-of-experts model, each text within the experts of its own languages.
`/translate`, `/detect` and `/languages` are those of LibreTranslate, whose clients work unchanged; languages go by
ISO 639-1 or FLORES-200 code. Errors are always `{"error": "..."}`."""


def make_app(
    opening: Opening,
    settings: ServerSettings | None = None,
    *,
    identifier: LanguageIdentifier | None = None,
    failed: Callable[[BaseException], None] | None = None,
) -> FastAPI:
    """Return the application; its state is `app.state.server`.

    Args:
        opening: Makes the backend, once the server listens; until it is made, only `/health` says that all is well.
        settings: Limits and choices.
        identifier: Of the language of texts; by default the one inside its package.
        failed: Is told if the backend cannot be made, or has ended by a fault.

    Raises:
        UsageError: if the file of keys is not right.
    """
    settings = settings or ServerSettings()
    state = ServerState(settings, identifier or identifier_of())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(_or_failed(_open(state, opening), failed)),
            asyncio.create_task(_or_failed(state.refreshing(), failed)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await state.close()

    app: FastAPI = FastAPIOffline(
        title="nllb-prune", version=__version__, description=_ABOUT, lifespan=lifespan, redoc_url=None
    )
    app.state.server = state
    app.include_router(libre_routes(state))
    app.include_router(v1_routes(state))
    _add_metrics(app, state)
    add_page(app)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_middleware(BodyLimit, most=settings.body, deadlines=state.arrivals)
    app.add_middleware(Records, metrics=state.metrics)
    if settings.origins:  # the outermost, so that pages can read why they were refused
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(HeadAsGet)
    return app


async def _open(state: ServerState, opening: Opening) -> None:
    said = await state.open(await opening())
    log.info("ready", extra={"model": said.model, "masks": said.masks, "directions": len(said.directions)})


async def _or_failed(work: Awaitable[None], failed: Callable[[BaseException], None] | None) -> None:
    """Do what a server cannot do without."""
    try:
        await work
    except Exception as error:
        if failed is None:
            log.error("the model cannot be served", extra={"error": str(error)})
        else:
            failed(error)


def _add_metrics(app: FastAPI, state: ServerState) -> None:
    @app.get(
        "/metrics",
        summary="What is counted, for Prometheus",
        response_class=PlainTextResponse,
        tags=["Experts at work"],
    )
    async def metrics() -> Response:
        served = state.served
        description, states = None, []
        if served is not None:
            description = served.description
            with suppress(Exception):  # what the server itself counts is told even if its backend cannot be asked
                states = await served.backend.states()
        text = await asyncio.to_thread(state.metrics.text, description, states)
        return Response(text, media_type=CONTENT_TYPE)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = Problem(error.status_code, str(error.detail)).response()
    found.headers.update(error.headers or {})
    return found
