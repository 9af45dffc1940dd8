"""`nllb-prune translate`: a sentence, a file or standard input."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nllb_prune.backends import TRANSFORMERS
from nllb_prune.cli._options import add_backend, add_model, add_stream, backend_of, load, placement, positive
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.generation.search import EarlyStopping
    from nllb_prune.generation.translate import Translation

HELP = "translate text with the full model or within a mask"
_EARLY_STOPPING: dict[str, EarlyStopping] = {"no": False, "yes": True, "never": "never"}
EXAMPLE = 'nllb-prune translate mini "wake me up at nine" --source eng_Latn --target deu_Latn'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_model(parser)
    add_backend(parser)
    add_stream(parser)
    parser.set_defaults(usage_error=parser.error)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="sentences; without any, lines of --input are read")
    parser.add_argument("--source", help="language of the text, as in `eng_Latn` or `en`")
    parser.add_argument("--target", help="language to translate into")
    parser.add_argument("--masks", type=Path, metavar="FILE", help="use only the experts of these masks")
    parser.add_argument("--beams", type=positive, default=1, help="1 (default) is greedy")
    parser.add_argument("--alternatives", type=positive, default=1, help="translations of each line, best first")
    parser.add_argument(
        "--early-stopping",
        choices=sorted(_EARLY_STOPPING),
        default="no",
        help="end a search at as many finished translations as beams (yes), when the best open one could not enter as "
        "it is (no, default), or only when none ever could (never); as in transformers",
    )
    parser.add_argument("--rows", type=positive, default=128, help="sentences translated together (default 128)")
    parser.add_argument(
        "--length-penalty", type=float, default=1.0, help="above 0 (default 1) favours long translations"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line: translations and log-probabilities"
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="one sentence a line (default: standard input)")
    parser.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help="instead of text and languages, texts of any length and any languages at once: one JSON object a line, "
        "with `text`, `source` and `target`",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="with --requests: what weights and sentences in flight may take, as in 24GB; experts that do not fit come "
        "and go (default: all are in memory)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: standard output)")


def run(options: argparse.Namespace) -> None:
    """Translate and print."""
    from nllb_prune._files import write_text
    from nllb_prune.cli._translate_requests import translate_requests
    from nllb_prune.generation.search import SearchSettings
    from nllb_prune.generation.translate import translations
    from nllb_prune.languages import language
    from nllb_prune.masks import MaskSet

    search = SearchSettings(
        beams=options.beams,
        alternatives=options.alternatives,
        length_penalty=options.length_penalty,
        early_stopping=_EARLY_STOPPING[options.early_stopping],
    )
    if options.requests is not None:
        _check_requests(options)
        translate_requests(options, search)
        return
    if options.memory is not None:
        raise UsageError("`--memory` must come with `--requests`, but comes without.")
    if missing := [f"--{name}" for name in ("source", "target") if getattr(options, name) is None]:
        options.usage_error(f"the following arguments are required: {', '.join(missing)} (or --requests)")
    source, target = language(options.source).code, language(options.target).code
    if options.texts and options.input:
        raise UsageError("The text must be TEXT or the lines of `--input`, but both are given.")
    lines = options.texts or _lines(options.input)
    masks = None if options.masks is None else MaskSet.load(options.masks)
    direction = None if masks is None else (source, target)
    backend = backend_of(options)
    if masks is None and not options.stream and backend.in_parts(options.model):
        direction = (source, target)  # only the files of its sides need be there
    kept = {} if options.stream else {"masks": masks, "direction": direction}
    model = load(options, **kept, **placement(options))
    found = translations(
        model,
        backend.load_tokenizer(options.model),
        lines,
        source=source,
        target=target,
        masks=masks,
        search=search,
        rows=options.rows,
    )
    text = "".join(
        _as_json(line, each) if options.json else _as_text(each) for line, each in zip(lines, found, strict=True)
    )
    if options.output:
        write_text(options.output, text)
    else:
        sys.stdout.write(text)


def _check_requests(options: argparse.Namespace) -> None:
    if options.backend != TRANSFORMERS:
        raise UsageError(f"`--backend` must be {TRANSFORMERS} with `--requests`, but is {options.backend} instead.")
    for name in ("texts", "source", "target", "input", "stream"):
        if getattr(options, name):
            what = "TEXT" if name == "texts" else f"`--{name}`"
            raise UsageError(f"{what} must be left out with `--requests`, whose lines say it, but is given.")


def _as_text(found: list[Translation]) -> str:
    return "".join(f"{translation.text}\n" for translation in found)


def _as_json(line: str, found: list[Translation]) -> str:
    content = {"text": line, "translations": [asdict(translation) for translation in found]}
    return json.dumps(content, ensure_ascii=False) + "\n"


def _lines(path: Path | None) -> list[str]:
    """Split at line feeds only, so that there are as many lines out as in."""
    content = sys.stdin.buffer.read() if path is None else path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path or 'standard input'}` must be UTF-8 text, but is not ({error}).") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
