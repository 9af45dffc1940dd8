"""`python -m eval.shape generate | circle | compare | sizes`; each has `--help`, README.md tells what was measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from .shapes import SHAPES

FORMATS, DTYPES = ("bin", "safetensors"), ("float32", "bfloat16", "float16")


def main() -> None:
    """Run a verb; each imports what it needs, so that the runner of the circle stays small beside what it measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    _add_generate(verbs.add_parser("generate", help="write a checkpoint of a shape"))
    _add_circle(verbs.add_parser("circle", help="do everything to one, and measure each step"))
    _add_compare(verbs.add_parser("compare", help="compare what a circle exported with the full model in its masks"))
    _add_sizes(verbs.add_parser("sizes", help="what a checkpoint takes in each form"))
    options = parser.parse_args()
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_generate)
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    _add_shape(parser)


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="nllb-54b", help="(default: nllb-54b)")
    parser.add_argument("--format", choices=FORMATS, default="bin", help="(default: bin)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    parser.add_argument(
        "--random-layers", type=int, metavar="N", help="dense matrices beyond N layers of a stack are holes too"
    )
    parser.add_argument("--seed", type=int, default=0)


def _generate(options: argparse.Namespace) -> None:
    from .checkpoint import generate

    try:
        generate(
            options.output,
            shape=SHAPES[options.shape],
            format=options.format,
            dtype=options.dtype,
            random_layers=options.random_layers,
            seed=options.seed,
        )
    except OSError as error:
        raise SystemExit(str(error)) from None


def _add_circle(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_circle)
    parser.add_argument("--work", type=Path, required=True, help="keeps everything; finished steps are not run again")
    _add_shape(parser)
    parser.add_argument("--sentences", type=int, default=32, help="calibrated in each of two directions (default: 32)")
    parser.add_argument("--export", default="", metavar="OPTIONS", help="more options of export, as in '--dtype bf16'")
    parser.add_argument("--translate", default="", metavar="OPTIONS", help="more options of translate")


def _circle(options: argparse.Namespace) -> None:
    from .circle import circle, markdown, markdown_sizes, run

    generating = ["--format", options.format, "--dtype", options.dtype, "--seed", str(options.seed)]
    if options.random_layers is not None:
        generating += ["--random-layers", str(options.random_layers)]
    steps = circle(
        options.work,
        options.shape,
        generating=generating,
        exporting=options.export.split(),
        translating=options.translate.split(),
        sentences=options.sentences,
    )
    found = run(options.work, steps)
    print("\n".join([markdown_sizes(options.work), "", *markdown(found)]))


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_compare)
    parser.add_argument("--work", type=Path, required=True, help="of the circle")


def _compare(options: argparse.Namespace) -> None:
    from .circle import SOURCE, TARGET
    from .compare import compare, markdown

    model, export, masks = (options.work / name for name in ("model", "export", "masks.json"))
    rows = compare(model, export, masks, (SOURCE, TARGET))
    (options.work / "compare.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("\n".join(markdown(rows)))


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_sizes)
    parser.add_argument("--work", type=Path, required=True, help="for files that go again, and `sizes.json`")
    parser.add_argument("--sentences", type=int, default=200, help="scored in each direction (default: 200)")
    parser.add_argument(
        "--rows", type=int, default=40_000, help="that a trimmed vocabulary of the 54B keeps (default: 40,000, a guess)"
    )


def _sizes(options: argparse.Namespace) -> None:
    from .sizes import markdown_mini, markdown_shape, of_mini, of_shape

    shape = of_shape(SHAPES["nllb-54b"], dtype="float32", rows=options.rows)
    print("\n".join(markdown_shape(shape)), flush=True)
    mini = of_mini(options.work, sentences=options.sentences)
    print("\n".join(["", *markdown_mini(mini)]))
    found = {"mini": mini, "nllb-54b": shape, "rows": options.rows, "sentences": options.sentences}
    (options.work / "sizes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
