"""How a translator works, and what of it is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.planning.memory import parse_memory
from nllb_prune.tokenization import MAX_LENGTH

_SHORTEST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a translator works; the names are those of `Translator`."""

    memory: int | None
    pinned: tuple[str, ...]
    languages: tuple[str, ...] | None
    longest: int
    beams: int
    rows: int
    positions: int
    patience: float
    full: bool = False


def checked(
    *,
    memory: int | str | None,
    pinned: Sequence[str],
    languages: Sequence[str] | None,
    longest: int,
    beams: int,
    rows: int,
    positions: int,
    patience: float,
    full: bool = False,
) -> Settings:
    """Return settings that mean something.

    Raises:
        UsageError: naming the first that does not.
    """
    for name, number in (("beams", beams), ("rows", rows), ("positions", positions), ("longest", longest)):
        _check_count(name, number)
    if not _SHORTEST <= longest <= MAX_LENGTH:
        raise UsageError(f"`longest` must be from {_SHORTEST} to {MAX_LENGTH} tokens, but is {longest} instead.")
    if not isinstance(patience, int | float) or not math.isfinite(patience) or patience < 0:
        raise UsageError(f"`patience` must be seconds, 0 or more, but is {patience!r} instead.")
    for name, names in (("pinned", pinned), ("languages", languages)):
        if isinstance(names, str):
            raise UsageError(f"`{name}` must be a list of languages, but is the text {names!r} instead.")
    size = parse_memory(memory) if isinstance(memory, str) else memory
    if size is not None:
        _check_count("memory", size)
    return Settings(
        memory=size,
        pinned=tuple(pinned),
        languages=None if languages is None else tuple(languages),
        longest=longest,
        beams=beams,
        rows=rows,
        positions=positions,
        patience=patience,
        full=full,
    )


def _check_count(name: str, number: Any) -> None:
    if type(number) is not int or number < 1:
        raise UsageError(f"`{name}` must be a whole number from 1, but is {number!r} instead.")


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what is no list of texts; a single text is a sequence too, of characters.

    Raises:
        UsageError: if that is what came.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        what = "one text" if isinstance(texts, str) else "something else too"
        raise UsageError(f"`texts` must be a list of texts, but is {what} instead.")
