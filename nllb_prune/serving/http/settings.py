"""How a translation server works: what a client may ask for, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nllb_prune.errors import UsageError

UNLIMITED = -1
"""What LibreTranslate's clients read where there is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Limits and choices of a server."""

    characters: int | None = 5000
    """Of a text."""
    texts: int | None = 128
    """Of a list."""
    body: int = 2_000_000
    """Bytes of a request."""
    body_seconds: float = 30.0
    """For a request to arrive in."""
    rate: int | None = None
    """Texts a minute of an address without a key, and of a key without a rate of its own."""
    longest_wait: float = 10.0
    """Seconds of work that may be waiting; further requests are refused at once."""
    deadline: float = 60.0
    """Seconds after which a request is given up."""
    drain: float = 30.0
    """Seconds that a server that ends gives to requests under way."""
    beams: int = 1
    """Of searches, unless a request says otherwise."""
    keys: Path | None = None
    """File of API keys."""
    keys_required: bool = True
    """Whether requests must have a key, where there is a file of keys."""
    origins: tuple[str, ...] = ()
    """Web sites whose pages may use the server; `*` for all."""
    refresh: float = 5.0
    """Seconds between looks at what a backend serves."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        counts = {"characters": self.characters, "texts": self.texts, "body": self.body, "rate": self.rate}
        for name, count in {**counts, "beams": self.beams}.items():
            if count is not None and (type(count) is not int or count < 1):
                raise UsageError(f"`{name}` must be a whole number from 1, but is {count!r} instead.")
        for name in ("body_seconds", "longest_wait", "deadline", "drain", "refresh"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
                raise UsageError(f"`{name}` must be seconds, more than 0, but is {seconds!r} instead.")
