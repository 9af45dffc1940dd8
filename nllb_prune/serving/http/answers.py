"""Answers in JSON, whatever text is in them."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


class Json(Response):
    """JSON in UTF-8; text that UTF-8 has no form for, such as a lone surrogate, is escaped as it came."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the bytes of a content."""
        return dumps(content).encode()


def dumps(content: Any) -> str:
    """Return a content as JSON that is valid UTF-8."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text
