"""The one error of the toolkit: something the user gave is wrong, and the message says what to do."""

from __future__ import annotations


class UsageError(ValueError):
    """A wrong model, mask, language, setting or file; the command line prints its message as one line."""
