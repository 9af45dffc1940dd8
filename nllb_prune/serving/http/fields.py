"""The parameters of a request: a JSON object, a form, or the query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

from nllb_prune.serving.http.problems import Problem

Fields = Mapping[str, Any]


async def read_fields(request: Request) -> Fields:
    """Return what a request says, by name; a name that a form has several times is a list.

    Raises:
        Problem: if the body is not what it says it is.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _object(await request.body())
    found = _lists(request.query_params.multi_items())
    if kind == "multipart/form-data":
        return found | _lists((await _form(request)).multi_items())
    body = await request.body()  # of any kind, so that what comes after it is the end of the connection
    if kind == "application/x-www-form-urlencoded":  # in UTF-8, also where it is not in percents
        return found | _lists(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    return found


def _object(body: bytes) -> Fields:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(400, "Invalid JSON format") from None
    if not isinstance(content, dict):
        raise Problem(400, "Invalid JSON format")
    return content


async def _form(request: Request) -> FormData:
    try:
        return await request.form()
    except (HTTPException, ValueError):
        raise Problem(400, "Invalid form") from None


def _lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for name, value in items:
        found.setdefault(name, []).append(value.replace("\r\n", "\n") if isinstance(value, str) else value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}
