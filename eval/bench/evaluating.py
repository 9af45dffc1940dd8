"""Time an evaluation of `mini`: every direction, the full model and one configuration, with all measures.

`python -m eval.bench.evaluating [--beams 1 4] [--sentences 200] [--threads 2]`
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nllb_prune import MaskSet, ParallelText, calibrate, evaluate, load_model, load_tokenizer, plan
from nllb_prune.evaluation.evaluate import Search
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.measuring import SCORES_ONLY, Measuring, usual_measuring
from nllb_prune.evaluation.significance.bootstrap import paired_bootstrap
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.languages import Direction, parse_directions
from nllb_prune.model.source import embedded_text

Result = TypeVar("Result")


@dataclass(frozen=True)
class Seconds:
    """What the parts of an evaluation took."""

    beams: int
    translations: int
    translating: float
    """With chrF++ and BLEU."""
    measuring: float
    """Detectors and fidelity, translations kept."""
    unchanged: float
    """The same command again: nothing to do but to check."""
    summing_up: float

    @property
    def total(self) -> float:
        """All but the unchanged run."""
        return self.translating + self.measuring + self.summing_up


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """Return what a call takes, and what it returns."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def masks_of(model: Any, tokenizer: Any, directions: tuple[Direction, ...], folder: Path) -> MaskSet:
    """Plan 75 % per language."""
    text = ParallelText.open(embedded_text(), split="dev")
    statistics = calibrate(model, tokenizer, text, directions, pairs_per_target="all", folder=folder)
    return plan(statistics, kept=0.25, ratio="3:1", model_name="mini")


def run(beams: int, sentences: int, work: Path) -> tuple[Seconds, Evaluation]:
    """Evaluate all directions with the full model and with masks."""
    model, tokenizer = load_model("mini"), load_tokenizer("mini")
    text = ParallelText.open(embedded_text(), split="test")
    directions = parse_directions("all", text.languages)
    configurations = {"full": None, "per language 75 %": masks_of(model, tokenizer, directions, work / "statistics")}
    folder, measures = work / f"beams-{beams}", usual_measuring(tokenizer)

    def with_measures(measuring: Measuring) -> Evaluation:
        return evaluate(
            model,
            tokenizer,
            text,
            directions,
            configurations,
            folder=folder,
            measuring=measuring,
            sentences=sentences,
            search=Search(beams=beams),
        )

    translating, _ = timed(lambda: with_measures(SCORES_ONLY))
    measuring, _ = timed(lambda: with_measures(measures))
    unchanged, evaluation = timed(lambda: with_measures(measures))
    summing_up, _ = timed(lambda: summarise(evaluation, text, detectors=measures.detectors))
    translations = len(directions) * sentences * len(configurations)
    return Seconds(beams, translations, translating, measuring, unchanged, summing_up), evaluation


def against_sacrebleu(evaluation: Evaluation) -> tuple[float, float]:
    """Return the seconds of a paired bootstrap of chrF++ and BLEU in one direction: sacrebleu on strings, and ours."""
    direction = evaluation.directions[0]
    text = ParallelText.open(embedded_text(), split="test")
    baseline, system = (evaluation.result(name, direction) for name in evaluation.configurations)
    references = [list(text.lines(direction[1])[: system.sentences])]
    named = [("baseline", list(baseline.hypotheses)), ("system", list(system.hypotheses))]
    metrics = {"chrF++": CHRF(word_order=2, references=references), "BLEU": BLEU(references=references)}
    theirs, _ = timed(lambda: PairedTest(named, metrics, references=None, test_type="bs", n_samples=1000)())
    ours, _ = timed(
        lambda: [
            paired_bootstrap(system.scores[name].statistics, baseline.scores[name].statistics, metric=name)
            for name in ("chrf", "bleu")
        ]
    )
    return theirs, ours


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        found = [run(beams, options.sentences, Path(name)) for beams in options.beams]
        theirs, ours = against_sacrebleu(found[0][1])
    if options.json:
        rows = [{**asdict(seconds), "total": seconds.total} for seconds, _ in found]
        print(json.dumps({"runs": rows, "bootstrap": {"sacrebleu": theirs, "ours": ours}}))
        return
    print("| beams | translations | translating s | detectors and fidelity s | summary s | total s | again s |")
    print("|---|---|---|---|---|---|---|")
    for each, _ in found:
        parts = (each.translating, each.measuring, each.summing_up, each.total, each.unchanged)
        print(f"| {each.beams} | {each.translations:,} | " + " | ".join(f"{part:.1f}" for part in parts) + " |")
    print(
        f"\npaired bootstrap of one direction, chrF++ and BLEU: sacrebleu {1000 * theirs:.0f} ms, "
        f"on stored statistics {1000 * ours:.1f} ms, {theirs / ours:.0f} times"
    )


if __name__ == "__main__":
    main()
