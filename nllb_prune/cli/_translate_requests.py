"""`translate --requests`: texts of any languages at once, within a memory."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune._files import write_text
from nllb_prune.cli._options import placement, progress_bar
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.generation.search import SearchSettings
    from nllb_prune.serving.texts import TranslatedText

_FIELDS = ("text", "source", "target")
_TOGETHER = 2048
"""Requests that are handed over at once."""

Request = dict[str, str]


def translate_requests(options: argparse.Namespace, search: SearchSettings) -> None:
    """Translate the lines of a file and print one JSON object for each, in their order."""
    from nllb_prune.languages import language
    from nllb_prune.masks import MaskSet
    from nllb_prune.serving.translator import Translator

    requests = _read(options.requests)
    masks = None if options.masks is None else MaskSet.load(options.masks)
    languages = {language(request[side]).code for request in requests for side in ("source", "target")}
    batches = [requests[n : n + _TOGETHER] for n in range(0, len(requests), _TOGETHER)]
    lines: list[str] = []
    with Translator(
        options.model,
        masks,
        memory=options.memory,
        languages=sorted(languages) if len(languages) > 1 else None,
        beams=options.beams,
        rows=options.rows,
        **placement(options),
    ) as translator:
        for batch in progress_bar("requests")(batches):
            texts, sources, targets = ([request[field] for request in batch] for field in _FIELDS)
            found = translator.translate(texts, sources, targets, search=search)
            done = [_line(request, each, sentences=options.json) for request, each in zip(batch, found, strict=True)]
            if options.output is None:
                sys.stdout.write("".join(done))
            lines += done
    if options.output is not None:
        write_text(options.output, "".join(lines))


def _line(request: Request, found: TranslatedText, *, sentences: bool) -> str:
    content: dict[str, Any] = {field: request[field] for field in _FIELDS}
    content |= {"translation": found.text, "alternatives": list(found.alternatives)}
    if sentences:
        content["sentences"] = [[asdict(each) for each in sentence] for sentence in found.sentences]
    return json.dumps(content, ensure_ascii=False) + "\n"


def _read(path: Path) -> list[Request]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` must be JSON lines in UTF-8, but is not ({error}).") from None
    return [_request(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _request(path: Path, number: int, line: str) -> Request:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"Line {number} of `{path}` must be a JSON object, but is not ({error.msg}).") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(field), str) for field in _FIELDS):
        raise UsageError(f"Line {number} of `{path}` must have the strings {', '.join(_FIELDS)}, but has not.")
    return {field: content[field] for field in _FIELDS}
