"""Score an exported model on all test lines in every direction and write its card.

`python -m eval.mini.card --model DIR --trained DIR [DIR ...] [--dense] [--hardware TEXT]`, one DIR a phase.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nllb_prune import ParallelText, evaluate, load_model, load_tokenizer
from nllb_prune.evaluation.measuring import SCORES_ONLY
from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH, OUT_OF_ENGLISH
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.languages import language, parse_directions

from .tokenizer import RECIPE

SENTENCES = 200
_DATA = """\
MASSIVE 1.0 (Amazon, 2022, CC-BY-4.0; made from SLURP, CC-BY-4.0), its own partition: trained on train. Dev and test
keep literal lines that occur nowhere else in any of the languages. Text is lower case without punctuation; in training,
30 % of the pairs end in a full stop, question or exclamation mark. The tokenizer folds case."""


_COUNTS = ("step", "tokens", "seconds")


def curve(phases: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the training curve of phases, one after the other; after a restart the later line of a step counts."""
    rows: list[dict[str, Any]] = []
    for trained in phases:
        before = rows[-1] if rows else dict.fromkeys(_COUNTS, 0)
        lines = (trained / "curve.jsonl").read_text(encoding="utf-8").splitlines()
        for row in {row["step"]: row for row in map(json.loads, lines)}.values():
            rows.append(row | {name: row[name] + before[name] for name in _COUNTS})
    return rows


def score(folder: Path, text: Path, work: Path) -> Summary:
    """Score all directions, greedy, on the first test lines."""
    test = ParallelText.open(text, split="test")
    directions = parse_directions("all", test.languages)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    evaluation = evaluate(
        model,
        tokenizer,
        test,
        directions,
        {"full": None},
        folder=work,
        sentences=SENTENCES,
        measuring=SCORES_ONLY,
        force=True,
    )
    return summarise(evaluation, test, detectors=())


def matrix(scores: ConfigurationSummary, codes: list[str]) -> list[str]:
    """Return a Markdown table of chrF++, sources down and targets across."""
    by_direction = {d.direction: d.figures["chrf"] for d in scores.directions}
    lines = ["| from \\ into | " + " | ".join(codes) + " |", "|---" * (len(codes) + 1) + "|"]
    for source in codes:
        cells = [f"{by_direction[f'{source}-{target}']:.1f}" if source != target else "" for target in codes]
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    return lines


def card(summary: Summary, rows: list[dict[str, Any]], recipe: dict[str, Any], *, dense: bool, hardware: str) -> str:
    """Return the card as Markdown."""
    full = summary["full"]

    def mean(figure: str, group: str) -> float:
        return full.figure(figure, group).value

    shape, training = recipe["network_dense" if dense else "network"], recipe["training"]
    last = rows[-1]
    minutes = round(last["seconds"] / 60)
    codes = recipe["languages"]
    kind = "a dense model of the active size of `mini`" if dense else "a mixture-of-experts model"
    step = max(1, len(rows) // 12)
    shown = [*rows[::step], last] if rows[-1] not in rows[::step] else rows[::step]
    return "\n".join(
        [
            "---",
            "license: cc-by-4.0",
            f"language: [{', '.join(sorted({language(c).iso639_1 or c[:3] for c in codes}))}]",
            "pipeline_tag: translation",
            "---",
            "",
            f"# {'mini-dense' if dense else 'mini'}",
            "",
            f"Translates everyday requests between {len(codes)} languages, in all directions: {kind}",
            f"in the form of {'M2M-100' if dense else 'NLLB-MoE'}, small enough to ship and to try pruning on.",
            "Its domain is requests to a voice assistant, and nothing else.",
            "",
            f"Languages: {', '.join(codes)}.",
            "",
            "## Data",
            "",
            _DATA,
            "",
            "## Settings",
            "",
            "```json",
            json.dumps({**shape, **training, "seed": recipe["seed"], "phases": recipe["phases"]}, indent=1),
            "```",
            "",
            "## Training",
            "",
            f"{last['step']:,} updates, {last['tokens'] / 1e6:.1f} M target tokens, {minutes} minutes. {hardware}",
            "",
            "| step | M tokens | loss, smoothed | loss on dev |",
            "|---|---|---|---|",
            *(f"| {r['step']} | {r['tokens'] / 1e6:.1f} | {r['loss']:.2f} | {r['dev']:.2f} |" for r in shown),
            "",
            f"## Scores (chrF++ of the first {summary.sentences} test lines, greedy)",
            "",
            f"Mean of {len(full.directions)} directions {mean('chrf', ALL):.1f}; out of English "
            f"{mean('chrf', OUT_OF_ENGLISH):.1f}; into English {mean('chrf', INTO_ENGLISH):.1f}; "
            f"BLEU {mean('bleu', ALL):.1f}; length ratio {mean('length_ratio', ALL):.2f}.",
            f"Signature: `{'; '.join(summary.signatures['chrf'])}`",
            "",
            *matrix(full, codes),
            "",
        ]
    )


def write_card(folder: Path, phases: Sequence[Path], *, dense: bool, hardware: str = "") -> None:
    """Score the model of a folder and write its `README.md`."""
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    summary = score(folder, folder.parent / "mini" / "text", phases[-1] / "scores")
    here = f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}."
    text = card(summary, curve(phases), recipe, dense=dense, hardware=hardware or here)
    (folder / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--trained", type=Path, required=True, nargs="+")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--hardware", default="")
    options = parser.parse_args()
    write_card(options.model, options.trained, dense=options.dense, hardware=options.hardware)


if __name__ == "__main__":
    main()
