"""What pruning costs `mini`: every kind of mask at several budgets, on test text, with paired tests.

`python -m eval.mini.study --output DIR` calibrates on dev text, plans, scores and writes `RESULTS.md`
into DIR. It continues if killed. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nllb_prune import ExpertStatistics, MaskSet, ParallelText, calibrate, evaluate, load_model, load_tokenizer, plan
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.measuring import SCORES_ONLY
from nllb_prune.evaluation.significance.bootstrap import paired_bootstrap_over_directions
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.evaluation.summary.table import HEADER, table_rows
from nllb_prune.languages import english_and_ring, parse_directions, split_direction
from nllb_prune.masks import ExpertMask
from nllb_prune.model.source import embedded_text
from nllb_prune.planning import jaccard

BUDGETS = (0.5, 0.25, 0.125)
RATIOS = {0.5: ("1:1",), 0.25: ("1:3", "1:2", "1:1", "2:1"), 0.125: ("1:1",)}  # beside 3:1
KINDS: dict[str, dict[str, Any]] = {
    "per pair": {"granularity": "pair"},
    "per language": {},
    "global": {"granularity": "global"},
    "random": {"criterion": "random"},
    "frequency": {"criterion": "frequency"},
}


def progress(what: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    """Show a bar."""
    return lambda items: tqdm(items, desc=what, leave=False)


def configurations(statistics: ExpertStatistics) -> dict[str, MaskSet | None]:
    """Plan every kind at every budget at 3:1, and other ratios."""
    planned: dict[str, MaskSet | None] = {"full": None}
    for kept in BUDGETS:
        for name, kind in KINDS.items():
            planned[f"{name} {1 - kept:.1%}"] = plan(statistics, kept=kept, model_name="mini", **kind)
    for kept, ratios in RATIOS.items():
        for ratio in ratios:
            name = f"per language {1 - kept:.1%} {ratio}"
            planned[name] = plan(statistics, kept=kept, ratio=ratio, model_name="mini")
    return planned


def similarities(statistics: ExpertStatistics, kept: float) -> list[tuple[str, float, str]]:
    """Return the mean Jaccard similarities of kept sets beside the published ones (arXiv 2212.09811)."""
    pairs = plan(statistics, kept=kept, granularity="pair", model_name="mini")
    single = plan(statistics, kept=kept, model_name="mini")
    decoder, encoder = pairs.masks["decoder"], pairs.masks["encoder"]

    def mean(masks: dict[str, ExpertMask], wanted: Callable[[str, str], bool]) -> float:
        found = [jaccard(masks[a], masks[b]) for a, b in combinations(masks, 2) if wanted(a, b)]
        return sum(found) / len(found)

    def sides(a: str, b: str) -> tuple[bool, bool]:
        (source_a, target_a), (source_b, target_b) = split_direction(a), split_direction(b)
        return source_a == source_b, target_a == target_b

    return [
        ("encoder, same source, different targets", mean(encoder, lambda a, b: sides(a, b) == (True, False)), "1.00"),
        ("encoder, different sources (per language)", mean(single.masks["encoder"], lambda a, b: True), ".30-.50"),
        ("decoder, same target, different sources", mean(decoder, lambda a, b: sides(a, b)[1]), ".68-.87"),
        (
            "decoder, into English, different sources",
            mean(decoder, lambda a, b: sides(a, b)[1] and a.endswith("-eng_Latn")),
            ".55-.70",
        ),
        ("decoder, different targets", mean(decoder, lambda a, b: not sides(a, b)[1]), ".13-.39"),
        (
            "decoder, English and another (per language)",
            mean(single.masks["decoder"], lambda a, b: "eng_Latn" in (a, b)),
            ".085",
        ),
    ]


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lay out a Markdown table."""
    names = list(header)
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|", *("| " + " | ".join(r) + " |" for r in rows)]


def comparisons(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Compare per-language masks with the other kinds at each budget."""
    rows = []
    for kept in BUDGETS:
        ours = f"per language {1 - kept:.1%}"
        for kind in KINDS:
            other = f"{kind} {1 - kept:.1%}"
            if other != ours:
                statistics = [evaluation.statistics(name, "chrf") for name in (ours, other)]
                found = paired_bootstrap_over_directions(*statistics, metric="chrf")
                rows.append((f"{ours} against {kind}", f"{found.difference:+.2f}", f"{found.p_value:.3f}"))
    return rows


def report(summary: Summary, evaluation: Evaluation, statistics: ExpertStatistics) -> str:
    """Return the study as Markdown."""
    similar = [(name, f"{value:.2f}", published) for name, value, published in similarities(statistics, 0.25)]
    return "\n".join(
        [
            "# What pruning costs `mini`",
            "",
            f"Test text, {summary.sentences} sentences in each of {len(summary['full'].directions)} directions",
            "(all into and out of English and a ring through the others), greedy. Masks by `importance` at",
            "encoder:decoder 3:1 unless said otherwise, calibrated on dev text. `p` against the full model:",
            "paired bootstrap over directions.",
            "Made by `python -m eval.mini.study`.",
            "",
            *markdown(HEADER, table_rows(summary)),
            "",
            "Signatures: " + "; ".join(s for found in summary.signatures.values() for s in found),
            "",
            "## Per-language masks against the other kinds",
            "",
            *markdown(("", "chrF++", "p"), comparisons(evaluation)),
            "",
            "## Similarity of the kept sets, 75 % pruned",
            "",
            *markdown(("mean Jaccard", "mini", "published"), similar),
            "",
        ]
    )


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--calibration-sentences", type=int, default=300)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--dense", action="store_true", help="score `mini-dense` too")
    options = parser.parse_args()
    model, tokenizer = load_model("mini"), load_tokenizer("mini")
    development = ParallelText.open(embedded_text(), split="dev")
    test = ParallelText.open(embedded_text(), split="test")
    statistics = calibrate(
        model,
        tokenizer,
        development,
        parse_directions("all", development.languages),
        sentences=options.calibration_sentences,
        granularity="pair",
        folder=options.output / "statistics.work",
        progress=progress("calibrating"),
    )
    statistics.save(options.output / "statistics.safetensors")
    directions = english_and_ring(development.languages, others=12)
    common: dict[str, Any] = {
        "folder": options.output / "scores",
        "sentences": options.sentences,
        "measuring": SCORES_ONLY,
        "progress": progress("evaluating"),
    }
    evaluation = evaluate(model, tokenizer, test, directions, configurations(statistics), **common)
    if options.dense:
        dense = evaluate(load_model("mini-dense"), tokenizer, test, directions, {"dense": None}, **common)
        evaluation = evaluation.joined(dense)
    summary = summarise(evaluation, test, detectors=())
    summary.save(options.output / "summary.json")
    (options.output / "RESULTS.md").write_text(report(summary, evaluation, statistics), encoding="utf-8")
    print((options.output / "RESULTS.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
