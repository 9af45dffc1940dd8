"""Options that several verbs share, and what they make of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.backends import BACKENDS, FAIRSEQ2, TRANSFORMERS, named_backend
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.backends import Backend
    from nllb_prune.corpus import ParallelText
    from nllb_prune.worklist import Progress


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, `--device` and `--dtype`."""
    parser.add_argument("model", metavar="MODEL", help="`mini` (embedded), a folder, or a Hub id")
    add_placement(parser)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, `--dtype` and `--threads`."""
    add_device(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")


def add_backend(parser: argparse._ActionsContainer) -> None:
    """Add `--backend`."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=TRANSFORMERS,
        help="whose modules the model is made of (default: transformers); with fairseq2, which needs an environment of "
        "its own, MODEL may also be the name of one of its assets, or a .yaml file with a card",
    )


def backend_of(options: argparse.Namespace) -> Backend:
    """Return the backend asked for, by a verb that asks; a streamed model has one alone."""
    name = getattr(options, "backend", TRANSFORMERS)
    if name == FAIRSEQ2 and getattr(options, "stream", False):
        raise UsageError("`--stream` must be left out with `--backend fairseq2`, which has the model in memory.")
    return named_backend(name)


def add_device(parser: argparse._ActionsContainer) -> None:
    """Add `--device` and `--threads`."""
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=positive, help="of torch, on the CPU")


def add_stream(parser: argparse._ActionsContainer) -> None:
    """Add `--stream` and `--stream-memory`, of the verbs that `load` serves."""
    parser.add_argument(
        "--stream",
        action="store_true",
        help="for a model larger than memory: read its layers and the experts that are routed to while it runs",
    )
    parser.add_argument(
        "--stream-memory",
        metavar="SIZE",
        help="weights that stay in memory for the next call, as in 8GB (default: none)",
    )


def load(options: argparse.Namespace, **placed: Any) -> Any:
    """Load the model asked for, or stream it; further arguments are those of `load_model` without a mask."""
    from nllb_prune.model.streamed import load_streamed
    from nllb_prune.planning.memory import parse_memory

    chosen = backend_of(options)
    if options.stream:
        memory = 0 if options.stream_memory is None else parse_memory(options.stream_memory)
        return load_streamed(options.model, memory=memory, **placed)
    if options.stream_memory is not None:
        raise UsageError("`--stream-memory` must come with `--stream`, but comes alone; a model in memory needs none.")
    return chosen.load_model(options.model, **placed)


def add_text(parser: argparse.ArgumentParser, *, split: str, directions: str = "all") -> None:
    """Add `--text`, `--split`, `--directions` and `--sentences`; `directions` says what is done without."""
    parser.add_argument(
        "--text",
        metavar="PATH",
        help="aligned text: a FLORES folder, a folder of CODE.txt, a TSV or JSONL file, or `datasets:NAME` for the "
        "library of that name; `mini` has its own",
    )
    parser.add_argument("--split", help=f"split of a FLORES folder or a data set (default: {split})")
    parser.set_defaults(usual_split=split)
    parser.add_argument(
        "--directions",
        help=f"as in `eng_Latn-deu_Latn,*-eng_Latn`; `all` is every pair of languages (default: {directions})",
    )
    parser.add_argument("--sentences", type=positive, help="the first so many lines of each direction")


def add_debug(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add `--debug`."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error", **options)


def add_debug_to_actions(actions: Iterable[argparse.ArgumentParser]) -> None:
    """Add `--debug` to the actions of a verb, where its absence leaves what the verb was given."""
    for action in actions:
        add_debug(action, default=argparse.SUPPRESS)


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but is {number} instead")
    return number


def placement(options: argparse.Namespace) -> dict[str, Any]:
    """Return the `dtype` and `device` arguments of `load_model`, and set torch's threads."""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(
            f"`--device` must be one that torch can use here (cpu, cuda, cuda:1, ...), but is {options.device} instead."
        ) from None
    return {
        "device": options.device,
        "dtype": None if options.dtype is None else getattr(torch, options.dtype),
    }


def open_text(options: argparse.Namespace) -> ParallelText:
    """Open the text asked for, or the embedded one of `mini`."""
    from nllb_prune.corpus import ParallelText
    from nllb_prune.model.source import EMBEDDED, embedded_text

    if options.text is None and options.model not in EMBEDDED:
        raise UsageError(f"`--text` must name aligned text in the languages of `{options.model}`, but is missing.")
    path = embedded_text() if options.text is None else Path(options.text)
    usual = options.usual_split if (path / options.usual_split).is_dir() else None  # other layouts have no splits
    return ParallelText.open(path, split=options.split or usual)


def directions_of(options: argparse.Namespace, text: ParallelText, tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """Return the directions asked for, among the languages of the text that the tokenizer knows."""
    from nllb_prune.languages import parse_directions
    from nllb_prune.tokenization import known_languages

    known = known_languages(tokenizer)
    spoken = [code for code in text.languages if code in known]
    return parse_directions(options.directions or "all", spoken)


def progress_bar(what: str) -> Progress:
    """Return a wrapper that shows a bar on a terminal and nothing elsewhere."""
    from tqdm import tqdm

    def wrap(items: Iterable[Any]) -> Iterable[Any]:
        bar: Iterable[Any] = tqdm(items, desc=what, disable=not sys.stderr.isatty(), file=sys.stderr, leave=False)
        return bar

    return wrap


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table: the first column to the left, numbers to the right."""
    widths = [max(len(str(row[n])) for row in (header, *rows)) for n in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            str(c).ljust(w) if n == 0 else str(c).rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
