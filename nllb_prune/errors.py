"""The errors of the toolkit: something the user gave is wrong, or cannot be had now, and what to do about it."""

from __future__ import annotations


class UsageError(ValueError):
    """A wrong model, mask, language, setting or file; the command line prints its message as one line."""


class Unavailable(UsageError):  # noqa: N818 - the request is no error
    """What was asked for is right, but cannot be had now: the translator is closed, or experts cannot be read."""
