"""Options that several verbs share, and what they make of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.corpus import ParallelText
    from nllb_prune.worklist import Progress


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, `--device` and `--dtype`."""
    parser.add_argument("model", metavar="MODEL", help="`mini` (embedded), a folder, or a Hub id")
    add_placement(parser)


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, `--dtype` and `--threads`."""
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")


def add_text(parser: argparse.ArgumentParser, *, split: str) -> None:
    """Add `--text`, `--split`, `--directions` and `--sentences`."""
    parser.add_argument(
        "--text",
        metavar="PATH",
        help="aligned text: a FLORES folder, a folder of CODE.txt, a TSV or JSONL file; `mini` has its own",
    )
    parser.add_argument("--split", default=split, help=f"split of a FLORES folder (default: {split})")
    parser.add_argument(
        "--directions",
        default="all",
        help="as in `eng_Latn-deu_Latn,*-eng_Latn`; `all` (default) is every pair of languages",
    )
    parser.add_argument("--sentences", type=positive, help="the first so many lines of each direction")


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
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(
            f"`--device` must be a device of this machine, but is {options.device} and there is no CUDA here."
        )
    return {
        "device": options.device,
        "dtype": None if options.dtype is None else getattr(torch, options.dtype),
    }


def open_text(options: argparse.Namespace) -> ParallelText:
    """Open the text asked for, or the embedded one of `mini`."""
    from nllb_prune.corpus import ParallelText
    from nllb_prune.model.loading import EMBEDDED, embedded_text

    if options.text is not None:
        return ParallelText.open(Path(options.text), split=options.split)
    if options.model in EMBEDDED:
        return ParallelText.open(embedded_text(), split=options.split)
    raise UsageError(f"`--text` must name aligned text in the languages of `{options.model}`, but is missing.")


def directions_of(options: argparse.Namespace, text: ParallelText, tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """Return the directions asked for, among the languages of the text that the tokenizer knows."""
    from nllb_prune.languages import language, parse_directions

    known = set(tokenizer.get_vocab())
    spoken = [code for code in text.languages if language(code).token in known]
    return parse_directions(options.directions, spoken)


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
