"""`nllb-prune evaluate`: masks to scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nllb_prune.cli._options import (
    add_model,
    add_text,
    directions_of,
    open_text,
    placement,
    positive,
    progress_bar,
    table,
)
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.masks import MaskSet

HELP = "translate and score with the full model and within masks"
EXAMPLE = "nllb-prune evaluate mini --masks masks.json --directions 'eng_Latn-*,*-eng_Latn' --output scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_model(parser)
    add_text(parser, split="test")
    parser.add_argument(
        "--masks",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a configuration to score beside the full model; may be repeated",
    )
    parser.add_argument("--dense", metavar="MODEL", help="a dense model to score beside it, as `mini-dense`")
    parser.add_argument("--no-full", action="store_true", help="leave the full model out")
    parser.add_argument("--baseline", help="configuration to compare with (default: full)")
    parser.add_argument("--beams", type=positive, default=1, help="1 (default) is greedy")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="results, and `summary.json`")
    parser.add_argument("--restart", action="store_true", help="make results of other settings again")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(options: argparse.Namespace) -> None:
    """Evaluate, write the summary and print its table."""
    from nllb_prune.evaluation.evaluate import evaluate
    from nllb_prune.evaluation.summary import HEADER, summarise, table_rows
    from nllb_prune.model.loading import load_model
    from nllb_prune.model.source import load_tokenizer

    configurations = _configurations(options)
    baseline = options.baseline or next(iter(configurations))
    known = [*configurations, *(["dense"] if options.dense else [])]
    if baseline not in known:
        raise UsageError(f"`--baseline` must be one of {', '.join(known)}, but is {baseline} instead.")
    tokenizer = load_tokenizer(options.model)
    text = open_text(options)
    directions = directions_of(options, text, tokenizer)
    results = evaluate(
        load_model(options.model, **placement(options)),
        tokenizer,
        text,
        directions,
        configurations,
        folder=options.output,
        sentences=options.sentences,
        beams=options.beams,
        restart=options.restart,
        progress=progress_bar("evaluating"),
    )
    if options.dense:
        results += evaluate(
            load_model(options.dense, **placement(options)),
            load_tokenizer(options.dense),
            text,
            directions,
            {"dense": None},
            folder=options.output,
            sentences=options.sentences,
            beams=options.beams,
            restart=options.restart,
            progress=progress_bar("evaluating dense"),
        )
    summary = summarise(results, baseline=baseline)
    summary.save(options.output / "summary.json")
    if options.json:
        print(json.dumps(summary.to_json(), sort_keys=True))
        return
    print(table(HEADER, table_rows(summary)))
    print(f"\n{len(directions)} directions, {summary.sentences} sentences each; p against {summary.baseline}")
    for metric, signatures in summary.signatures.items():
        print(f"{metric}: {'; '.join(signatures)}")


def _configurations(options: argparse.Namespace) -> dict[str, MaskSet | None]:
    """Return the masks of each configuration by its name, which names a folder of results too."""
    from nllb_prune.masks import MaskSet

    configurations: dict[str, MaskSet | None] = {} if options.no_full else {"full": None}
    for text in options.masks:
        given, _, file = text.rpartition("=")
        name = given or Path(file).stem
        if name in (*configurations, "full", "dense") or Path(name).name != name or name == "..":
            raise UsageError(
                f"`--masks` must give each configuration a name of its own, as in `NAME={file}`, other than full and "
                f"dense and without slashes, but gives {name} instead."
            )
        configurations[name] = MaskSet.load(Path(file))
    if not configurations:
        raise UsageError("`--masks` must name at least one configuration with `--no-full`, but names none.")
    return configurations
