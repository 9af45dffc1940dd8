"""`nllb-prune calibrate`: text to statistics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nllb_prune.cli._options import add_model, add_text, directions_of, open_text, placement, progress_bar
from nllb_prune.errors import UsageError

HELP = "count what each expert does for each language, on aligned text"
EXAMPLE = "nllb-prune calibrate mini --sentences 200 --output mini-statistics.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_model(parser)
    add_text(parser, split="dev")
    parser.add_argument("--granularity", choices=("language", "pair"), default="language", help="what sums are kept by")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="statistics, `.safetensors`")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps finished directions (default: OUTPUT.work)")
    parser.add_argument("--restart", action="store_true", help="throw away finished directions of other settings")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> None:
    """Calibrate and write the statistics."""
    from nllb_prune.calibration.teacher_forced import calibrate
    from nllb_prune.model.loading import load_model, load_spec
    from nllb_prune.model.source import load_tokenizer

    if options.output.is_dir():
        raise UsageError(f"`--output` must be a file, but `{options.output}` is a folder instead.")
    load_spec(options.model)  # a dense model is refused before its weights are read
    tokenizer = load_tokenizer(options.model)
    text = open_text(options)
    directions = directions_of(options, text, tokenizer)
    statistics = calibrate(
        load_model(options.model, **placement(options)),
        tokenizer,
        text,
        directions,
        sentences=options.sentences,
        granularity=options.granularity,
        folder=options.work or options.output.with_suffix(".work"),
        restart=options.restart,
        progress=progress_bar("calibrating"),
    )
    statistics.save(options.output)
    tokens = {
        stack.name: sum(int(statistics.table(stack.name, key)["tokens"][0]) for key in statistics.keys(stack.name))
        for stack in statistics.spec.stacks
    }
    if options.json:
        print(json.dumps({"output": str(options.output), "directions": len(directions), "tokens": tokens}))
    else:
        counted = ", ".join(f"{count:,} {name} tokens" for name, count in tokens.items())
        print(f"{options.output}: {len(directions)} directions, {counted}")
