"""`nllb-prune calibrate`: text to statistics."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nllb_prune.calibration.fields import GROUPS, collected
from nllb_prune.cli._options import (
    add_backend,
    add_model,
    add_text,
    backend_of,
    directions_of,
    open_text,
    placement,
    positive,
    progress_bar,
)
from nllb_prune.errors import UsageError
from nllb_prune.worklist import named

if TYPE_CHECKING:
    from nllb_prune.calibration.calibrate import Calibration
    from nllb_prune.calibration.statistics import ExpertStatistics

HELP = "count what each expert does for each language, on aligned text"
EXAMPLE = "nllb-prune calibrate mini --collect norms --output mini-statistics.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_model(parser)
    add_backend(parser)
    add_text(parser, split="dev", directions="lines spread over all, see `--pairs-per-target`")
    parser.add_argument(
        "--pairs-per-target",
        type=_pairs,
        metavar="N",
        help="spread the first N lines of each target, or `all`, over its sources (default without --directions: all); "
        "with --directions, every direction runs over every line unless this is given",
    )
    parser.add_argument("--granularity", choices=("language", "pair"), default="language", help="what sums are kept by")
    groups = "; ".join(f"{name}: {group.description}" for name, group in GROUPS.items())
    parser.add_argument(
        "--collect", default="core", metavar="GROUPS", help=f"what to collect beside core, by commas. {groups}"
    )
    parser.add_argument(
        "--mode",
        choices=("references", "outputs"),
        default="references",
        help="what goes through the decoder: the reference translations, or the model's own",
    )
    parser.add_argument("--beams", type=positive, default=1, help="of the search for outputs; 1 (default) is greedy")
    parser.add_argument("--masks", type=Path, metavar="FILE", help="observe the model within these masks")
    parser.add_argument(
        "--shard", metavar="K/N", help="the K-th of N parts, from 1, to be merged with `stats merge`; torchrun sets it"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="statistics, `.safetensors`")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keeps finished directions (default: OUTPUT.work)")
    parser.add_argument("--restart", action="store_true", help="throw away finished directions of other settings")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="for a model larger than memory: read it layer by layer, of a sparse layer one expert at a time, for many "
        "sentences at once",
    )
    parser.add_argument(
        "--stream-memory",
        metavar="SIZE",
        help="states and sums held at once, as in 8GB or 512MiB (default: 4GB); what exceeds it waits for another "
        "reading of the model",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _pairs(text: str) -> int | Literal["all"]:
    return "all" if text == "all" else positive(text)


def run(options: argparse.Namespace) -> None:
    """Calibrate and write the statistics; under torchrun each process makes its part and the first writes them."""
    from nllb_prune.calibration.processes import process_group

    if options.output.is_dir():
        raise UsageError(f"`--output` must be a file, but `{options.output}` is a folder instead.")
    shard = _shard(options.shard)
    with process_group() as processes:
        if processes is None:
            calibration = _prepared(options)
            _announce(calibration, shard, restart=options.restart)
            calibration.observe(shard=shard, restart=options.restart, progress=progress_bar("calibrating"))
            _finish(options, calibration.statistics(shard=shard))
            return
        if options.shard is not None:
            raise UsageError("`--shard` must be left out under torchrun, which shards by itself.")
        options.device = processes.device(options.device)
        calibration, part = _prepared(options), (processes.rank, processes.count)
        _announce(calibration, part, restart=options.restart)
        calibration.observe(shard=part, restart=options.restart, progress=progress_bar("calibrating"))
        processes.wait()
        if processes.rank == 0:
            _check_shared(calibration)
            _finish(options, calibration.statistics())


def _announce(calibration: Calibration, shard: tuple[int, int], *, restart: bool) -> None:
    """Say what a streamed run will take."""
    outlook = calibration.outlook(shard=shard, restart=restart)
    if outlook is not None and outlook.chunks:
        print(outlook, file=sys.stderr)


def _check_shared(calibration: Calibration) -> None:
    """Refuse a folder that lacks what other processes made: made again by one of them, it would take the whole time."""
    if missing := calibration.missing():
        raise UsageError(
            f"`--work` must be a folder that all processes see, but `{calibration.folder}` lacks {len(missing)} of "
            f"{len(calibration.items)} directions that all have finished ({named(missing)}). Copy the folders of the "
            "other machines into it, or name one that they share, and run again without `--restart`."
        )


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise UsageError(f"`--shard` must be K/N with K from 1 to N, as in 1/4, but is {text} instead.")
    return int(parts[0]) - 1, int(parts[1])


def _prepared(options: argparse.Namespace) -> Calibration:
    """Read model and text."""
    from nllb_prune.calibration.calibrate import check_mode, prepare
    from nllb_prune.calibration.streamed_plan import MEMORY
    from nllb_prune.masks import MaskSet
    from nllb_prune.model.streamed import load_streamed

    check_mode(options.mode, options.beams)
    memory = _stream_memory(options)
    backend = backend_of(options)
    backend.load_spec(options.model)  # a dense model is refused before its weights are read
    groups = collected(name.strip() for name in options.collect.split(",") if name.strip())
    masks = None if options.masks is None else MaskSet.load(options.masks)
    tokenizer = backend.load_tokenizer(options.model)
    text = open_text(options)
    usual: Any = "all" if options.directions is None else None
    return prepare(
        (load_streamed if options.stream else backend.load_model)(options.model, **placement(options)),
        tokenizer,
        text,
        directions_of(options, text, tokenizer),
        sentences=options.sentences,
        pairs_per_target=options.pairs_per_target or usual,
        granularity=options.granularity,
        collect=groups,
        mode=options.mode,
        beams=options.beams,
        masks=masks,
        folder=options.work or options.output.with_suffix(".work"),
        stream_memory=MEMORY if memory is None else memory,
    )


def _stream_memory(options: argparse.Namespace) -> int | None:
    from nllb_prune.planning.memory import parse_memory

    if options.stream_memory is None:
        return None
    if not options.stream:
        raise UsageError("`--stream-memory` must come with `--stream`, but comes alone; a model in memory needs none.")
    return parse_memory(options.stream_memory)


def _finish(options: argparse.Namespace, statistics: ExpertStatistics) -> None:
    """Write the statistics and say what they hold."""
    statistics.save(options.output)
    tokens = {
        stack.name: sum(int(statistics.table(stack.name, key)["tokens"][0]) for key in statistics.keys(stack.name))
        for stack in statistics.spec.stacks
    }
    size = options.output.stat().st_size
    if options.json:
        found = {"output": str(options.output), "directions": len(statistics.items), "tokens": tokens, "bytes": size}
        print(json.dumps(found))
    else:
        counted = ", ".join(f"{count:,} {name} tokens" for name, count in tokens.items())
        print(f"{options.output}: {len(statistics.items)} directions, {counted}; {size / 1e6:.1f} MB")
