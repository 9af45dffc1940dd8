"""API keys: a file that tells who has one and what it allows, but none of the keys."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json, write_json
from nllb_prune.errors import UsageError

_FORMAT, _VERSION = "nllb-prune/keys", 1
_PREFIX = "nllb_"
_DIGEST = re.compile("[0-9a-f]{64}")
_LONGEST_NAME = 64
_FIELDS = ("name", "sha256", "rate", "admin", "created")


def new_key() -> str:
    """Make up a key: 256 random bits, behind a prefix that tells what it is where it is found."""
    return _PREFIX + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of a key."""

    name: str
    """Of whom it is; in logs and figures."""
    sha256: str
    """Of the key, in hexadecimal digits; no slow hash is needed, as nobody can try out 256 random bits."""
    rate: int | None = None
    """Texts a minute, if it has a rate of its own."""
    admin: bool = False
    """Whether it allows to reload masks and keys."""
    created: str
    """Date."""

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        _check_name(self.name)
        if not isinstance(self.sha256, str) or not _DIGEST.fullmatch(self.sha256):
            raise UsageError(f"`sha256` must be 64 hexadecimal digits, but is {self.sha256!r} instead.")
        if self.rate is not None and (type(self.rate) is not int or self.rate < 1):
            raise UsageError(f"`rate` must be a whole number from 1, or nothing, but is {self.rate!r} instead.")
        if type(self.admin) is not bool:
            raise UsageError(f"`admin` must be true or false, but is {self.admin!r} instead.")
        if not isinstance(self.created, str) or not _is_date(self.created):
            raise UsageError(f"`created` must be a date as 2026-01-31, but is {self.created!r} instead.")

    @classmethod
    def of(cls, secret: str, *, name: str, rate: int | None = None, admin: bool = False) -> Key:
        """Return what is kept of a key that is given out today."""
        return cls(name=name, sha256=_digest(secret), rate=rate, admin=admin, created=date.today().isoformat())

    def content(self) -> dict[str, Any]:
        """Return it as it is in the file."""
        return {name: getattr(self, name) for name in _FIELDS}


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The keys of a server, each under a name of its own."""

    keys: tuple[Key, ...] = ()
    _by_digest: Mapping[str, Key] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse two keys of one name, and one key under two names."""
        for name in ("name", "sha256"):
            for value, times in Counter(getattr(key, name) for key in self.keys).items():
                if times > 1:
                    raise UsageError(f"`{name}` must be different for all keys, but {value} is there {times} times.")
        object.__setattr__(self, "_by_digest", {key.sha256: key for key in self.keys})

    @classmethod
    def load(cls, path: str | Path) -> KeyFile:
        """Read a file.

        Raises:
            UsageError: if it is not one.
        """
        content = read_json(Path(path), what="a file of API keys")
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise UsageError(f"`{path}` must be a file of API keys, as `nllb-prune keys add` makes, but is not.")
        if content.get("version") != _VERSION:
            raise UsageError(
                f"`{path}` must have format version {_VERSION}, but has {content.get('version')} instead. "
                "Use the version of nllb-prune that wrote it."
            )
        try:
            return cls(tuple(_key(each) for each in _listed(content)))
        except UsageError as error:
            raise UsageError(f"`{path}` must be a file of API keys, but is not right: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write a file that only its owner reads.

        Raises:
            UsageError: if that cannot be.
        """
        content = {"format": _FORMAT, "version": _VERSION, "keys": [key.content() for key in self.keys]}
        usual = os.umask(0o077)  # so that it is not open to others for a moment
        try:
            write_json(Path(path), content)
        finally:
            os.umask(usual)

    def find(self, secret: str) -> Key | None:
        """Return what is known of a key, if anything; nothing can be learnt from how long that takes."""
        digest = _digest(secret)
        key = self._by_digest.get(digest)
        return key if key is not None and hmac.compare_digest(key.sha256, digest) else None

    def add(self, key: Key) -> KeyFile:
        """Return the keys and another.

        Raises:
            UsageError: if there is one of that name.
        """
        if any(key.name == each.name for each in self.keys):
            raise UsageError(f"`name` must be new, but there is a key of {key.name} already; remove that one first.")
        return KeyFile((*self.keys, key))

    def remove(self, name: str) -> KeyFile:
        """Return the keys without one.

        Raises:
            UsageError: if there is none of that name.
        """
        rest = tuple(key for key in self.keys if key.name != name)
        if len(rest) == len(self.keys):
            names = ", ".join(key.name for key in self.keys) or "there is none"
            raise UsageError(f"`name` must be that of a key ({names}), but is {name!r} instead.")
        return KeyFile(rest)


def _digest(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _listed(content: Mapping[str, Any]) -> list[Any]:
    listed = content.get("keys")
    if not isinstance(listed, list):
        raise UsageError("`keys` must be a list, but is not.")
    return listed


def _key(content: Any) -> Key:
    if not isinstance(content, dict) or set(content) != set(_FIELDS):
        raise UsageError(f"each of `keys` must have {', '.join(_FIELDS)}, and nothing else.")
    return Key(**content)


def _check_name(name: Any) -> None:
    right = isinstance(name, str) and name.isprintable() and name == name.strip()
    if not right or not 0 < len(name) <= _LONGEST_NAME:
        raise UsageError(
            f"`name` must be 1 to {_LONGEST_NAME} characters that can be printed, with no space at its ends, "
            f"but is {name!r} instead."
        )


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
