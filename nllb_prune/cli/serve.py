"""`nllb-prune serve`: a translation server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nllb_prune.cli._options import add_model, placement, positive
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.serving.http.backend import Backend
    from nllb_prune.serving.http.settings import ServerSettings

HELP = "start a translation server that LibreTranslate's clients can use, with a page to try"
EXAMPLE = "nllb-prune serve mini --port 5000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_model(parser)
    _add_model_options(parser.add_argument_group("what is served"))
    _add_limits(parser.add_argument_group("limits"))
    _add_access(parser.add_argument_group("access and log"))


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--masks",
        type=Path,
        metavar="FILE",
        help="use only the experts of these masks; read again on SIGHUP (`mini` has its own; `--masks none` for none)",
    )
    group.add_argument(
        "--full",
        action="store_true",
        help="offer the full model too, for each request, which takes memory for all experts (on for `mini` with its "
        "own masks)",
    )
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="for weights and sentences in flight, as in 24GB; experts that do not fit come and go (default: all stay)",
    )
    group.add_argument("--languages", metavar="LIST", help="serve these alone, as in eng_Latn,deu_Latn (default: all)")
    group.add_argument("--pinned", metavar="LIST", default="", help="languages whose experts never leave the memory")
    group.add_argument(
        "--beams", type=positive, default=1, help="of every search, unless a request says so (default 1)"
    )
    group.add_argument("--most-beams", type=positive, default=4, help="that a request may ask for (default 4)")
    group.add_argument("--longest", type=positive, default=256, help="tokens of a sentence; longer ones are cut (256)")
    group.add_argument(
        "--lid-model", type=Path, metavar="FILE", help="fastText model that finds out languages (default: py3langid)"
    )


def _add_limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--characters", type=whole_number, default=5000, help="of a text (default 5000; 0 for no limit)")
    group.add_argument("--texts", type=whole_number, default=128, help="of a list (default 128; 0 for no limit)")
    group.add_argument("--body", type=positive, default=2_000_000, help="bytes of a request (default 2000000)")
    group.add_argument("--rate", type=positive, help="texts a minute of a key or an address (default: no limit)")
    group.add_argument(
        "--longest-wait",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="of work that may be waiting; more is refused at once (default 10)",
    )
    group.add_argument(
        "--deadline", type=float, default=60.0, metavar="SECONDS", help="after which a request is given up (default 60)"
    )
    group.add_argument(
        "--drain",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="that requests under way have when the server ends (default 30)",
    )


def _add_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine alone)"
    )
    group.add_argument("--port", type=int, default=5000, help="(default 5000; 0 for any that is free)")
    group.add_argument("--keys", type=Path, metavar="FILE", help="API keys, made by `nllb-prune keys add`")
    group.add_argument(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="of a proxy, which is believed what client it speaks for (X-Forwarded-For; default: none)",
    )
    group.add_argument("--keys-optional", action="store_true", help="requests without a key are served too, at --rate")
    group.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="a web site whose pages may use the server (CORS); `*` for all (default: none)",
    )
    group.add_argument("--log", choices=("text", "json"), default="text", help="form of the log on standard error")
    group.add_argument("--quiet", action="store_true", help="no line for each request")


def run(options: argparse.Namespace) -> None:
    """Serve until a signal."""
    try:
        from nllb_prune.serving.http.logs import start_log
        from nllb_prune.serving.http.server import serve
    except ImportError as error:
        if (error.name or "").startswith("nllb_prune"):
            raise
        raise UsageError(
            f"A server needs the library {error.name}, which is not installed. Run `pip install 'nllb-prune[serve]'`."
        ) from None
    from nllb_prune.evaluation.detectors.identification import identifier_of

    settings = _settings(options)
    start_log(options.log, quiet=options.quiet)
    serve(
        lambda: _backend(options),
        settings,
        host=options.host,
        port=options.port,
        proxies=options.proxy,
        identifier=identifier_of(options.lid_model),
    )


def _settings(options: argparse.Namespace) -> ServerSettings:
    from nllb_prune.serving.http.settings import ServerSettings

    return ServerSettings(
        characters=options.characters,
        texts=options.texts,
        body=options.body,
        rate=options.rate,
        longest_wait=options.longest_wait,
        deadline=options.deadline,
        drain=options.drain,
        beams=options.beams,
        keys=options.keys,
        keys_required=not options.keys_optional,
        origins=tuple(options.origin),
    )


def _backend(options: argparse.Namespace) -> Backend:
    from nllb_prune.serving.http.backend import LocalBackend
    from nllb_prune.serving.masks import masks_to_serve
    from nllb_prune.serving.translator import Translator

    masks, full = masks_to_serve(options.model, options.masks, full=options.full, memory=options.memory)
    translator = Translator(
        options.model,
        masks,
        memory=options.memory,
        pinned=_names(options.pinned),
        languages=None if options.languages is None else _names(options.languages),
        longest=options.longest,
        beams=max(options.beams, options.most_beams),
        full=full,
        **placement(options),
    )
    return LocalBackend(translator, masks=masks)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def whole_number(text: str) -> int | None:
    """Parse a whole number; 0 is for none."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, but is {number} instead")
    return number or None
