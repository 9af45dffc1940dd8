"""The log of a server: one JSON object a line, or a line for people."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogForm = Literal["text", "json"]

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


def start_log(form: LogForm, *, quiet: bool = False) -> None:
    """Write what servers tell to standard error; `quiet` leaves requests out that went well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    levels = {"nllb_prune.server": logging.INFO, "uvicorn.error": logging.WARNING}
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.getLogger("nllb_prune.server.requests").setLevel(logging.WARNING if quiet else logging.INFO)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        content |= _fields(record)
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=True, default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.getMessage(), *(f"{name}={value}" for name, value in _fields(record).items())]
        if record.levelno > logging.INFO:
            words.insert(1, record.levelname.lower())
        if record.exc_info:
            words.append("\n" + self.formatException(record.exc_info))
        return " ".join(words)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return what was said beside the message."""
    return {name: value for name, value in record.__dict__.items() if name not in _OWN}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
