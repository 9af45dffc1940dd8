"""Writing files so that a killed run leaves the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside the path and rename onto it; folders are made as needed.

    A link stays a link, to the new file; what is no file, as `/dev/stdout`, is written to.

    Raises:
        UsageError: if there is a folder of that name, or the system refuses: a full disk, a place one may not write to.
    """
    if path.is_dir():
        raise UsageError(f"`{path}` must be a file to write, but is a folder instead.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(path, content)
    except OSError as error:
        raise UsageError(
            f"`{path}` must be a place to write {len(content):,} bytes to, but is not ({error.strerror or error})."
        ) from error


def _write_beside(path: Path, content: bytes) -> None:
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    write_text(path, json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1) + "\n")


def read_json(path: Path, *, what: str) -> Any:
    """Read JSON; `what` names the expected file in the message of an error.

    Raises:
        UsageError: if there is no such file or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"`{path}` must be {what}, but there is no such file.") from None
    except IsADirectoryError:
        raise UsageError(f"`{path}` must be {what}, but is a folder instead.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"`{path}` must be {what}, but is not valid JSON instead ({error}).") from None
