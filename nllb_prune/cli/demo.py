"""`nllb-prune demo`: the whole flow on the embedded model, from text to a report, in a few minutes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import add_placement, placement, positive, progress_bar, table
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.corpus import ParallelText
    from nllb_prune.masks import MaskSet

HELP = "calibrate, plan, evaluate and report on the embedded `mini` model"
EXAMPLE = "nllb-prune demo --output demo-output"

RATIOS = ("1:2", "1:1", "2:1")  # beside the 3:1 of every other configuration
OTHER_DIRECTIONS = 12
MEASURED_SOURCES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_placement(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="(default: demo-output)"
    )
    parser.add_argument("--calibration-sentences", type=positive, default=60, help="of each direction (default: 60)")
    parser.add_argument(
        "--measured-sentences", type=positive, default=12, help="of each direction that plans are measured on (12)"
    )
    parser.add_argument("--sentences", type=positive, default=80, help="scored in each direction (default: 80)")
    parser.add_argument("--restart", action="store_true", help="throw away results of other settings")


def plan_configurations(statistics: ExpertStatistics) -> dict[str, MaskSet]:
    """Plan every kind of mask of the demo at the same budget."""
    from nllb_prune.languages import language_set
    from nllb_prune.planning import plan

    usual = language_set("mini").pruning
    kinds: dict[str, dict[str, Any]] = {
        "per language": {},
        "global": {"granularity": "global"},
        "random": {"criterion": "random"},
        "frequency": {"criterion": "frequency"},
        **{f"per language {ratio}": {"ratio": ratio} for ratio in RATIOS},
    }
    default: dict[str, Any] = {"kept": usual.kept, "ratio": usual.ratio}
    return {name: plan(statistics, **(default | kind)) for name, kind in kinds.items()}


def plan_by_measure(
    statistics: ExpertStatistics, model: Any, tokenizer: Any, text: ParallelText, *, sentences: int
) -> dict[str, MaskSet]:
    """Plan the masks that held-out text decides on: at the same budget, and as the guard lets them grow."""
    from nllb_prune.calibration.pairing import ring
    from nllb_prune.evaluation.fidelity.held_out import HeldOut
    from nllb_prune.languages import language_set, parse_directions
    from nllb_prune.planning.measured import Decisions, plan_measured

    usual = language_set("mini")
    sources = ring(parse_directions("all", usual.codes), MEASURED_SOURCES)
    measure = HeldOut.of(
        model,
        tokenizer,
        text,
        [(source, target) for target, each in sources.items() for source in each],
        sentences=sentences,
        decoded=sentences,
        skipped=int(statistics.signature["sentences"]),
        progress=progress_bar("full model"),
    )
    kept = usual.pruning.kept
    automatic, guarded = Decisions(ratio="auto", layers="auto"), Decisions(guard=True)
    return {
        "automatic": plan_measured(statistics, measure, decisions=automatic, kept=kept),
        "guarded": plan_measured(statistics, measure, decisions=guarded, kept=kept, ratio=usual.pruning.ratio),
    }


def run(options: argparse.Namespace) -> None:
    """Run the flow and say where the report is."""
    from nllb_prune.calibration.calibrate import calibrate
    from nllb_prune.corpus import ParallelText
    from nllb_prune.evaluation.detectors.flagging import fitted
    from nllb_prune.evaluation.evaluate import evaluate
    from nllb_prune.evaluation.measuring import usual_measuring
    from nllb_prune.evaluation.summary.summarise import summarise
    from nllb_prune.evaluation.summary.table import HEADER, table_rows
    from nllb_prune.languages import english_and_ring, language_set, parse_directions
    from nllb_prune.model.loading import load_model
    from nllb_prune.model.source import embedded_text, load_tokenizer
    from nllb_prune.report.page import write_report

    started = time.perf_counter()
    output: Path = options.output
    codes = language_set("mini").codes
    model, tokenizer = load_model("mini", **placement(options)), load_tokenizer("mini")
    development = ParallelText.open(embedded_text(), split="dev")
    test = ParallelText.open(embedded_text(), split="test")

    lines = len(development.lines("eng_Latn"))
    if options.calibration_sentences + options.measured_sentences > lines:
        raise UsageError(
            f"`--calibration-sentences` and `--measured-sentences` must be at most {lines} together, the lines of the "
            f"text, but are {options.calibration_sentences} and {options.measured_sentences} instead."
        )
    _say(f"1/4 calibrate: what each expert does in {len(codes)} languages, on dev text")
    statistics = calibrate(
        model,
        tokenizer,
        development,
        parse_directions("all", codes),
        sentences=options.calibration_sentences,
        folder=output / "statistics.work",
        restart=options.restart,
        progress=progress_bar("calibrating"),
    )
    statistics.save(output / "statistics.safetensors")

    masks = plan_configurations(statistics)
    _say(f"2/4 plan: masks that keep {masks['per language'].mean_kept_fraction():.0%} of the experts")
    masks |= plan_by_measure(statistics, model, tokenizer, development, sentences=options.measured_sentences)
    for name, mask_set in masks.items():
        mask_set.save(output / "masks" / f"{_file_name(name)}.json")

    directions = english_and_ring(codes, others=OTHER_DIRECTIONS)
    _say(f"3/4 evaluate: {len(directions)} directions, {options.sentences} test sentences each")
    measuring = usual_measuring(tokenizer)
    common: dict[str, Any] = {
        "folder": output / "scores",
        "sentences": options.sentences,
        "measuring": measuring,
        "force": options.restart,
    }
    configurations = {"full": None, **masks}
    progress = progress_bar("evaluating")
    evaluation = evaluate(model, tokenizer, test, directions, configurations, progress=progress, **common)
    dense = load_model("mini-dense", **placement(options))
    found = evaluate(dense, tokenizer, test, directions, {"dense": None}, progress=progress_bar("dense"), **common)
    evaluation = evaluation.joined(found)
    evaluation.save()
    detectors = fitted(measuring.detectors, evaluation.of_configuration("full"))
    summary = summarise(evaluation, test, detectors=detectors, baseline="full", progress=progress_bar("summing up"))
    summary.save(output / "summary.json")

    _say("4/4 report\n")
    write_report(output / "report.html", summary=summary, statistics=statistics, masks=masks)
    print(table(HEADER, table_rows(summary)))
    against = f"{summary.test['name']} against `{summary.baseline}` over {len(directions)} directions"
    print(f"\n`q`: {against}, adjusted for the number of tests.")
    print(f"report: {output / 'report.html'} ({time.perf_counter() - started:.0f} s in all)")


def _file_name(name: str) -> str:
    return name.replace(" ", "-").replace(":", "-")


def _say(line: str) -> None:
    print(line, flush=True)
