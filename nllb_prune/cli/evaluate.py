"""`nllb-prune evaluate`: masks to scores, detections and verdicts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.cli import _detect_only
from nllb_prune.cli._detectors import add_detectors, detectors_of, parse_thresholds
from nllb_prune.cli._evaluate_job import Job, job_of
from nllb_prune.cli._options import (
    add_backend,
    add_placement,
    add_text,
    backend_of,
    placement,
    positive,
    progress_bar,
    table,
)
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.evaluation.evaluation import Evaluation
    from nllb_prune.evaluation.measuring import Measuring
    from nllb_prune.evaluation.summary.summary import Summary
    from nllb_prune.masks import MaskSet
    from nllb_prune.worklist import Progress

_SUMMARY = "summary.json"

HELP = "translate, score and look for hallucinations with the full model and within masks"
EXAMPLE = "nllb-prune evaluate mini --masks masks.json --directions 'eng_Latn-*,*-eng_Latn' --output scores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="`mini` (embedded), a folder, or a Hub id")
    add_placement(parser)
    add_backend(parser)
    add_text(parser, split="test")
    _add_configurations(parser)
    _add_measures(parser)
    add_detectors(parser)
    _add_judgement(parser)
    _add_run(parser)
    _detect_only.add_arguments(parser)


def _add_configurations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a configuration to score beside the full model; may be repeated",
    )
    parser.add_argument("--dense", metavar="MODEL", help="a dense model to score beside it, as `mini-dense`")
    parser.add_argument("--no-full", action="store_true", help="leave the full model out")
    parser.add_argument("--baseline", help="configuration to compare with (default: the first)")
    parser.add_argument("--beams", type=positive, help="1 (default) is greedy")
    parser.add_argument(
        "--suite", metavar="NAME", help="a named evaluation: mini, mini-budgets, paper30, paper53, nllb202, or a .toml"
    )
    parser.add_argument("--needs", action="store_true", help="say what the suite would need, and stop")
    parser.add_argument("--statistics", type=Path, metavar="FILE", help="to plan the suite's masks from")


def _add_measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spbleu-model",
        type=Path,
        metavar="FILE",
        help="sentencepiece model of spBLEU (default: sacrebleu's, if cached)",
    )
    parser.add_argument(
        "--no-fidelity", action="store_true", help="leave out the comparison with the full model token by token"
    )


def _add_judgement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=WARN/REJECT",
        help="of the verdict, as in mean_loss=0.5/2; may be repeated",
    )
    parser.add_argument(
        "--test",
        choices=("randomisation", "bootstrap"),
        default="randomisation",
        help="for p of scores and lengths (default: randomisation, by which p of rates is in any case)",
    )
    parser.add_argument("--resamples", type=positive, default=1000, help="of the bootstrap (default: 1000)")
    parser.add_argument("--trials", type=positive, default=10_000, help="of randomisation (default: 10000)")
    parser.add_argument("--seed", type=int, default=12345, help="of the tests (default: 12345, as in sacrebleu)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help="results, and `summary.json`")
    parser.add_argument("--force", action="store_true", help="make all results again")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("--ray", metavar="ADDRESS", help="spread the work over a Ray cluster; `local` starts one here")
    parser.add_argument("--workers", type=positive, default=2, help="processes on the cluster (default: 2)")


def run(options: argparse.Namespace) -> None:
    """Evaluate, write the summary and print its table."""
    _detect_only.check(options)
    if options.detect_only is not None:
        _detect_only.run(options)
        return
    job = job_of(options)
    if job is None:
        return
    if options.output is None:
        raise UsageError("`--output` must be given, but is missing.")
    summary = _evaluate(job, options)
    if options.json:
        print(json.dumps(summary.to_json(), sort_keys=True))
    else:
        show(summary)


def _evaluate(job: Job, options: argparse.Namespace) -> Summary:
    from nllb_prune.evaluation.detectors import UNLIKELY
    from nllb_prune.evaluation.detectors.flagging import fitted
    from nllb_prune.evaluation.summary.comparing import Testing
    from nllb_prune.evaluation.summary.summarise import summarise
    from nllb_prune.evaluation.summary.verdict import parse_limits
    from nllb_prune.tokenization import known_languages

    limits, testing = (
        parse_limits(options.limit),
        Testing(options.test, options.resamples, options.trials, options.seed),
    )
    baseline = options.baseline or job.names[0]
    if baseline not in job.names:
        raise UsageError(f"`--baseline` must be one of {', '.join(job.names)}, but is {baseline} instead.")
    measuring = measuring_of(options, known_languages(backend_of(options).load_tokenizer(job.model)))
    evaluation = _results(job, options, measuring)
    evaluation.save()
    detectors = measuring.detectors
    if UNLIKELY not in parse_thresholds(options.threshold):
        detectors = fitted(detectors, evaluation.of_configuration(baseline))
    summary = summarise(
        evaluation,
        job.text,
        detectors=detectors,
        baseline=baseline,
        limits=limits,
        testing=testing,
        progress=progress_bar("summing up"),
    )
    summary.save(options.output / _SUMMARY)
    return summary


def _results(job: Job, options: argparse.Namespace, measuring: Measuring) -> Evaluation:
    evaluate = _on_ray(options) if options.ray else _here(options)
    run_one = partial(_run, job, options, measuring, evaluate)
    found = run_one(job.model, job.configurations, "evaluating")
    if job.dense is None:
        return found
    return found.joined(run_one(job.dense, {"dense": None}, "evaluating dense"))


def _run(
    job: Job,
    options: argparse.Namespace,
    measuring: Measuring,
    evaluate: Callable[..., Evaluation],
    model: str,
    configurations: Mapping[str, MaskSet | None],
    what: str,
) -> Evaluation:
    from nllb_prune.evaluation.evaluate import Search

    return evaluate(
        model,
        text=job.text,
        directions=job.directions,
        configurations=configurations,
        folder=options.output,
        measuring=measuring,
        sentences=job.sentences,
        search=Search(beams=job.beams),
        force=options.force,
        progress=partial(_started, options.output, progress_bar(what)),
        told=_tell,
    )


def _started(output: Path, bar: Progress, items: Iterable[Any]) -> Iterable[Any]:
    """Show a bar over results to be made; the summary of those before goes: a killed run leaves none of others."""
    (output / _SUMMARY).unlink(missing_ok=True)
    return bar(items)


def _here(options: argparse.Namespace) -> Callable[..., Evaluation]:
    from nllb_prune.evaluation.evaluate import evaluate

    backend = backend_of(options)

    def here(model: str, **how: Any) -> Evaluation:
        return evaluate(backend.load_model(model, **placement(options)), backend.load_tokenizer(model), **how)

    return here


def _on_ray(options: argparse.Namespace) -> Callable[..., Evaluation]:
    from nllb_prune.evaluation.evaluate import evaluate_elsewhere
    from nllb_prune.evaluation.on_ray import ray_mapper

    gpus = 1.0 if options.device.startswith("cuda") else 0.0
    make_mapper = partial(ray_mapper, options.ray, options.workers, threads=options.threads or 1, gpus=gpus)
    return partial(evaluate_elsewhere, make_mapper=make_mapper, backend=options.backend, **placement(options))


def show(summary: Summary) -> None:
    """Print the table, the verdicts and how the numbers were made."""
    from nllb_prune.evaluation.summary.table import HEADER, table_rows

    print(table(HEADER, table_rows(summary)))
    first = summary.configurations[0]
    print(f"\n{len(first.directions)} directions, {summary.sentences} sentences each; against {summary.baseline}")
    for each in summary.configurations:
        if each.verdict is not None:
            print(f"{each.name}: {each.verdict.outcome}")
            for reason in each.verdict.reasons:
                print(f"  {reason}")
    print()
    for name, signatures in summary.signatures.items():
        print(f"{name}: {'; '.join(signatures)}")


def measuring_of(options: argparse.Namespace, languages: Sequence[str]) -> Measuring:
    """Return what is measured, and say what is left out."""
    from nllb_prune.evaluation.measuring import Measuring
    from nllb_prune.evaluation.scores.spbleu import find_spbleu, spbleu_missing

    spbleu = find_spbleu(options.spbleu_model)
    if spbleu is None:
        _tell(spbleu_missing())
    return Measuring(detectors=detectors_of(options, languages), spbleu=spbleu, fidelity=not options.no_fidelity)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
