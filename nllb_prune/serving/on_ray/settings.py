"""Settings of the server on Ray, from names and values as commands and configuration files have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.generation.decode import POSITIONS, ROWS
from nllb_prune.serving.http.settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySettings:
    """What is deployed. Those that nothing is said of are as of `Translator`."""

    model: str
    masks: str | None = None
    """By default those that a checkpoint carries, or that `mini` has; `none` for none."""
    memory: str | None = None
    """Of each replica."""
    pinned: tuple[str, ...] = ()
    languages: tuple[str, ...] | None = None
    longest: int = 256
    most_beams: int = 4
    """`beams` of `Translator`."""
    rows: int = ROWS
    positions: int = 2 * POSITIONS
    patience: float = 2.0
    full: bool = False
    dtype: str | None = None
    device: str | None = None
    replicas: str = "1"
    """How many, or between how many, as in `1-4`: as many as it takes for `rows` requests at once on each."""
    gateways: int = 1
    """Processes that speak HTTP, each with limits of its own."""
    cpus: float = 1.0
    """Of each replica, which computes with as many threads."""
    gpus: float = 0.0
    """Of each replica."""
    requests: int = 256
    """At once of a replica; those beyond wait, or go to a replica that has not had their language."""
    kept_languages: int | None = None
    """Target languages that are kept to a replica; by default as many as its memory holds."""
    lid_model: str | None = None
    """fastText model that finds out languages; py3langid by default."""

    def __post_init__(self) -> None:
        """Refuse what means nothing to Ray; a translator looks at the rest."""
        for name in ("gateways", "requests", "kept_languages"):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or count < 1):
                raise UsageError(f"`{name}` must be a whole number from 1, but is {count!r} instead.")
        for name in ("cpus", "gpus"):
            share = getattr(self, name)
            if not isinstance(share, int | float) or not 0 <= share < float("inf"):
                raise UsageError(f"`{name}` must be 0 or more, but is {share!r} instead.")
        _ = self.bounds

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the most replicas.

        Raises:
            UsageError: if they are no numbers.
        """
        least, between, most = self.replicas.partition("-")
        try:
            found = int(least), int(most if between else least)
        except ValueError:
            found = 0, 0
        if not 1 <= found[0] <= found[1]:
            raise UsageError(
                f"`replicas` must be a whole number from 1, or two as in 1-4, but is {self.replicas} instead."
            )
        return found


def read_settings(given: Mapping[str, Any]) -> tuple[RaySettings, ServerSettings]:
    """Return settings by their names, and texts as what they mean: `none`, `true`, lists with commas.

    Raises:
        UsageError: naming the first that is not right, with what is.
    """
    kinds = {field.name: str(field.type) for kind in (RaySettings, ServerSettings) for field in fields(kind)}
    for name in given:
        if name not in kinds:
            raise UsageError(f"`{name}` must be one of {', '.join(kinds)}.")
    values = {name: _value(name, kinds[name], value) for name, value in given.items()}
    if not values.get("model"):
        raise UsageError("`model` must be given, as in `model=mini`.")
    return RaySettings(**_of(RaySettings, values)), ServerSettings(**_of(ServerSettings, values))


def _of(kind: type[RaySettings] | type[ServerSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _value(name: str, kind: str, value: Any) -> Any:
    """Return what a value means, by the annotation of its setting."""
    plain, _, optional = kind.partition(" | ")
    if value is None or (optional and plain != "str" and value == "none"):
        return None
    if plain == "str":
        return str(value)
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    read, what = _READERS[plain]
    try:
        return read(value)
    except (ValueError, KeyError):
        raise UsageError(f"`{name}` must be {what}, but is {value} instead.") from None


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": ({"true": True, "false": False}.__getitem__, "true or false"),
    "Path": (Path, "a file"),
    "tuple[str, ...]": (lambda text: tuple(filter(None, text.split(","))), "a list with commas"),
}
