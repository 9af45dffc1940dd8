"""Train `mini` (or `--dense`) from a folder of text.

`python -m eval.mini.train --text DIR --tokenizer DIR --output DIR [--dense] [--phase 2 --initial MODEL]`. A killed run
continues from its last checkpoint; the same seed gives the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .batches import END, IGNORED, Batch, TokenisedText, blocks, collate, tokenise
from .cross_entropy import tied_cross_entropy
from .network import Network, NetworkSettings, load_from_transformers
from .text import read_text
from .tokenizer import RECIPE


def learning_rate_share(step: int, settings: dict[str, Any]) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then a cosine down to `final_share`."""
    warmup, steps, final = settings["warmup_steps"], settings["steps"], settings["final_share"]
    if step < warmup:
        return float((step + 1) / warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return float(final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def loss_of(network: Network, batch: Batch, smoothing: float) -> tuple[Tensor, int]:
    """Return the mean token loss of a batch and the number of predicted tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = network(batch.source, batch.decoder_input)
        predicted = batch.labels.ne(IGNORED)
    labels = batch.labels[predicted]
    return tied_cross_entropy(states[predicted], network.shared.weight, labels, smoothing=smoothing), len(labels)


@torch.no_grad()
def held_out_loss(network: Network, batches: list[Batch]) -> float:
    """Return the token loss, without smoothing, over held-out batches."""
    network.eval()
    total, count = 0.0, 0
    for batch in batches:
        loss, tokens = loss_of(network, batch, 0.0)
        total, count = total + float(loss) * tokens, count + tokens
    network.train()
    return total / count


def held_out_batches(text: TokenisedText) -> list[Batch]:
    """Return batches of held-out lines over a ring of directions and all into and out of English."""
    rows = []
    codes = text.languages
    for n in range(0, len(text.plain["eng_Latn"]), 12):
        k = n // 12
        for source, target in (
            ("eng_Latn", codes[1 + k % (len(codes) - 1)]),
            (codes[1 + k % (len(codes) - 1)], "eng_Latn"),
            (codes[1 + k % (len(codes) - 1)], codes[1 + (k + 1 + k // 9) % (len(codes) - 1)]),
        ):
            if source != target:
                rows.append([[text.language_ids[c], *text.plain[c][n], END] for c in (source, target)])
    rows.sort(key=lambda sides: len(sides[1]))
    return [collate(rows[i : i + 120]) for i in range(0, len(rows), 120)]


def save(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename."""
    beside = path.with_suffix(".tmp")
    torch.save(content, beside)
    os.replace(beside, path)


@dataclass(slots=True)
class Progress:
    """How far a training is; all of it is in a checkpoint."""

    step: int = 0
    tokens: int = 0
    """Target tokens so far."""
    seconds: float = 0.0
    block: int = 0
    """Block of batches in use."""
    position: int = 0
    """Next batch of the block."""
    averaged: int = 0
    """Checkpoints in the average."""
    smoothed: float = 0.0
    """Running mean of the training loss."""


class Training:
    """A network, its optimizer and the average of its last weights."""

    def __init__(self, network: Network, settings: dict[str, Any], *, folder: Path) -> None:
        self.network, self.settings, self.folder = network, settings, folder
        self.progress = Progress()
        self.average: dict[str, Tensor] = {}
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=settings["learning_rate"],
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=settings["weight_decay"],
            fused=True,
        )

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        self.average = saved["average"]
        self.progress = Progress(**{field.name: saved[field.name] for field in fields(Progress)})
        print(f"continuing after step {self.progress.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint."""
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "average": self.average,
        }
        save(self.checkpoint, content | asdict(self.progress))

    def update(self, batch: Batch) -> None:
        """Make one update."""
        settings, progress = self.settings, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * learning_rate_share(progress.step, settings)
        loss, tokens = loss_of(self.network, batch, settings["label_smoothing"])
        self.optimizer.zero_grad(set_to_none=True)
        balance, information = self.network.balance(), self.network.information()
        routing = settings["balance_weight"] * balance - settings["information_weight"] * information
        (loss + routing).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings["clip_norm"])
        self.optimizer.step()
        progress.step, progress.tokens = progress.step + 1, progress.tokens + tokens
        now = loss.item()
        progress.smoothed = now if progress.smoothed == 0 else 0.98 * progress.smoothed + 0.02 * now
        if progress.step > settings["steps"] * (1 - settings["average_last"]):
            self._average()

    def _average(self) -> None:
        if self.progress.step % self.settings["average_every"]:
            return
        self.progress.averaged += 1
        for name, tensor in self.network.state_dict().items():
            mean = self.average.setdefault(name, torch.zeros_like(tensor))
            mean += (tensor - mean) / self.progress.averaged

    def log(self, held_out: list[Batch]) -> None:
        """Print a line of the curve and add it to `curve.jsonl`."""
        row = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds),
            "loss": round(self.progress.smoothed, 4),
            "dev": round(held_out_loss(self.network, held_out), 4),
            "balance": round(self.network.balance().item(), 3),
            "information": round(self.network.information().item(), 3),
        }
        print(json.dumps(row), flush=True)
        with (self.folder / "curve.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def run(self, batches: Iterator[list[Batch]], held_out: list[Batch], *, last: int) -> None:
        """Update until step `last`, with a checkpoint every `checkpoint_every` steps."""
        progress = self.progress
        current = next(islice(batches, progress.block, None))
        self.network.dropout.refill(progress.block)
        self.network.train()
        started = time.perf_counter()
        while progress.step < last:
            if progress.position == len(current):
                current, progress.position, progress.block = next(batches), 0, progress.block + 1
                self.network.dropout.refill(progress.block)
            progress.position += 1
            self.update(current[progress.position - 1])
            if progress.step % self.settings["checkpoint_every"] == 0 or progress.step == last:
                progress.seconds += time.perf_counter() - started
                self.log(held_out)
                self.save()
                started = time.perf_counter()

    def finish(self, held_out: list[Batch]) -> None:
        """Write the averaged weights as `final.pt`."""
        self.network.load_state_dict(self.average)
        loss = held_out_loss(self.network, held_out)
        print(json.dumps({"averaged": self.progress.averaged, "dev": round(loss, 4)}), flush=True)
        save(self.folder / "final.pt", {"network": self.network.state_dict()})


def phase_settings(recipe: dict[str, Any], phase: int) -> dict[str, Any]:
    """Return the settings of a phase, from 1: those of every training and its own over them."""
    return {**recipe["training"], **recipe["phases"][phase - 1]}


def new_network(recipe: dict[str, Any], settings: dict[str, Any], *, vocabulary: int, dense: bool) -> Network:
    """Make the network of the recipe with random weights."""
    torch.manual_seed(recipe["seed"])
    return Network(
        NetworkSettings(
            vocabulary=vocabulary,
            dropout=settings["dropout"],
            expert_output_masking=settings["expert_output_masking"],
            **recipe["network_dense" if dense else "network"],
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="FILE", help="(default: that of mini)")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--initial", type=Path, help="an exported model to start from (the phase before), instead of random weights"
    )
    parser.add_argument("--phase", type=int, default=1, help="of the recipe, from 1")
    parser.add_argument("--steps", type=int, help="updates, instead of the recipe's")
    parser.add_argument("--stop-at", type=int, help="stop after this step, to continue later")
    return parser.parse_args()


def main() -> None:
    """Train, or continue to train."""
    options = _options()
    torch.set_num_threads(options.threads)
    recipe = tomllib.loads(options.recipe.read_text(encoding="utf-8"))
    phases = recipe["phases"]
    if not 1 <= options.phase <= len(phases):
        raise SystemExit(f"`--phase` must be from 1 to {len(phases)}, but is {options.phase} instead.")
    settings = phase_settings(recipe, options.phase) | ({"steps": options.steps} if options.steps else {})
    aligned = read_text(options.text, recipe["languages"])
    tokenizer_file = str(options.tokenizer / "tokenizer.json")
    text = tokenise(aligned, "train", tokenizer_file)
    held_out = held_out_batches(tokenise(aligned, "dev", tokenizer_file))
    vocabulary = max(text.language_ids.values()) + 1  # the language codes are the last ids
    network = new_network(recipe, settings, vocabulary=vocabulary, dense=options.dense)
    if options.initial is not None:
        load_from_transformers(network, load_file(options.initial / "model.safetensors"))
    options.output.mkdir(parents=True, exist_ok=True)
    training = Training(network, settings, folder=options.output)
    training.resume()
    batches = blocks(
        text,
        seed=settings["seed"],
        batch_tokens=settings["batch_tokens"],
        english_share=settings["english_share"],
        punctuation_share=settings["punctuation_share"],
    )
    training.run(batches, held_out, last=options.stop_at or settings["steps"])
    if training.progress.step == settings["steps"]:
        training.finish(held_out)


if __name__ == "__main__":
    main()
