"""The page at `/` and its files, which are all in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

_SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page."""
    folder = Path(str(files("nllb_prune.serving.http") / "page"))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(folder / "index.html", headers=_SAFE)

    app.mount("/static", _Assets(directory=folder), name="static")


class _Assets(StaticFiles):
    """Files with the headers of the page."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a file."""
        response = await self.get_response(self.get_path(scope), scope)
        response.headers.update(_SAFE)
        await response(scope, receive, send)
