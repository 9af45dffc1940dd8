"""What a client is told when it cannot have what it asked for: always `{"error": "..."}`, texts that clients know."""

from __future__ import annotations

import math

from nllb_prune.serving.http.answers import Json

TOO_BUSY = "The server is too busy; try again later"
NOT_READY = "The server is not ready yet; try again later"
CLOSING = "The server is closing; try again later"
FAULT = "Internal error; the server's log tells more under request {}"
GONE = 499
"""Status of a request whose client has gone, which nobody reads."""


class Problem(Exception):  # noqa: N818
    """A request that is refused.

    Args:
        status: Of HTTP.
        message: For the client.
        retry_after: Seconds after which it may work, if it is worth to try again.
    """

    def __init__(self, status: int, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after

    def response(self) -> Json:
        """Return the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return Json({"error": self.message}, status_code=self.status, headers=headers)


def late(seconds: float) -> Problem:
    """Return the refusal of a translation that took too long."""
    return Problem(503, f"The translation was not finished within {seconds:g} seconds; send less text", retry_after=1.0)


def slow(seconds: float) -> Problem:
    """Return the refusal of a request that does not arrive."""
    return Problem(408, f"The request must arrive within {seconds:g} seconds")


def missing(name: str) -> Problem:
    """Return the refusal of a request without something."""
    return Problem(400, f"Invalid request: missing {name} parameter")


def wrong_type(name: str, wanted: str) -> Problem:
    """Return the refusal of a parameter of another type."""
    return Problem(400, f"Invalid request: {name} parameter is not {wanted}")


def exceeds(size: int, limit: int) -> Problem:
    """Return the refusal of too much text, or too many texts."""
    return Problem(400, f"Invalid request: request ({size}) exceeds text limit ({limit})")


def unsupported(name: str) -> Problem:
    """Return the refusal of a language."""
    return Problem(400, f"{name} is not supported")
