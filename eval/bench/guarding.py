"""Time what plans that are measured cost on `mini`, against one pass of the full model over the same sentences.

`python -m eval.bench.guarding [--sources 6 9] [--threads 2]`; with nine sources of each target, ten languages have 90
directions, about as many as sixteen languages have with the usual six (96).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from nllb_prune import Decisions, HeldOut, ParallelText, calibrate, load_model, load_tokenizer, plan_measured
from nllb_prune.calibration.pairing import ring
from nllb_prune.languages import parse_directions
from nllb_prune.model.source import embedded_text

CALIBRATED, SENTENCES = 300, 32
PLANS = (
    ("guard, 25 % at 1:1", {"kept": 0.25, "ratio": "1:1"}, Decisions(guard=True)),
    ("guard, 18.75 % at 3:1", {"kept": 0.1875, "ratio": "3:1"}, Decisions(guard=True)),
    ("ratio", {"kept": 0.1875}, Decisions(ratio="auto")),
    ("ratio by language", {"kept": 0.1875}, Decisions(ratio="auto-per-language")),
    ("layers", {"kept": 0.1875, "ratio": "1:1"}, Decisions(layers="auto")),
)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, nargs="+", default=[6, 9])
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_model("mini"), load_tokenizer("mini")
    text = ParallelText.open(embedded_text(), split="dev")
    directions = parse_directions("all", text.languages)
    with tempfile.TemporaryDirectory() as folder:
        statistics = calibrate(
            model, tokenizer, text, directions, sentences=CALIBRATED, pairs_per_target="all", folder=Path(folder)
        )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| plan | directions | full model, s | measures | passes of all directions | s | against the full model |")
    print("|---|---|---|---|---|---|---|")
    for sources in options.sources:
        asked = [(source, target) for target, each in ring(directions, sources).items() for source in each]
        started = time.perf_counter()
        measure = HeldOut.of(model, tokenizer, text, asked, sentences=SENTENCES, decoded=SENTENCES, skipped=CALIBRATED)
        full = time.perf_counter() - started
        for name, budget, decisions in PLANS:
            calls: list[int] = []
            started = time.perf_counter()
            plan_measured(
                statistics, measure, decisions=decisions, told=lambda _, count, to=calls: to.append(count), **budget
            )
            seconds = time.perf_counter() - started
            passes = sum(calls) / len(asked)
            print(
                f"| {name} | {len(asked)} | {full:.1f} | {len(calls)} | {passes:.1f} | {seconds:.1f} "
                f"| {seconds / full:.1f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
