"""Train `mini` (or `--dense`) from a folder of text.

`python -m eval.mini.train --text DIR --tokenizer DIR --output DIR [--dense]`. A killed run continues from
its last checkpoint; the same seed gives the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import IGNORED, Batch, blocks, collate, tokenise
from .cross_entropy import tied_cross_entropy
from .network import Network, NetworkSettings
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


def held_out_batches(text: Any) -> list[Batch]:
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
                rows.append([[text.language_ids[c], *text.plain[c][n], 2] for c in (source, target)])
    rows.sort(key=lambda sides: len(sides[1]))
    return [collate(rows[i : i + 120]) for i in range(0, len(rows), 120)]


def save(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename."""
    beside = path.with_suffix(".tmp")
    torch.save(content, beside)
    os.replace(beside, path)


def main() -> None:
    """Train, with a checkpoint and a line of the curve every `checkpoint_every` steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stop-at", type=int, help="stop after this step, to continue later")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    training = recipe["training"]
    shape = recipe["network_dense" if options.dense else "network"]
    aligned = read_text(options.text, recipe["languages"])
    tokenizer_file = str(options.tokenizer / "tokenizer.json")
    text = tokenise(aligned, "train", tokenizer_file)
    held_out = held_out_batches(tokenise(aligned, "dev", tokenizer_file))
    options.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(recipe["seed"])
    vocabulary = len(json.loads(Path(tokenizer_file).read_text(encoding="utf-8"))["model"]["vocab"])
    network = Network(
        NetworkSettings(
            vocabulary=max(vocabulary, max(text.language_ids.values()) + 1),
            dropout=training["dropout"],
            expert_output_masking=training["expert_output_masking"],
            **shape,
        )
    )
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=training["learning_rate"],
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=training["weight_decay"],
        fused=True,
    )
    average: dict[str, Tensor] = {}
    step = averaged = tokens_seen = block = position = 0
    seconds = 0.0
    checkpoint = options.output / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        average, averaged = saved["average"], saved["averaged"]
        step, tokens_seen, seconds = saved["step"], saved["tokens"], saved["seconds"]
        block, position = saved["block"], saved["position"]
        print(f"continuing after step {step}", flush=True)

    source_of_blocks = blocks(
        text,
        seed=recipe["seed"],
        batch_tokens=training["batch_tokens"],
        english_share=training["english_share"],
        punctuation_share=training["punctuation_share"],
    )
    for _ in range(block):
        next(source_of_blocks)
    current = next(source_of_blocks)
    network.train()
    started = time.perf_counter()
    running = 0.0
    last = options.stop_at or training["steps"]
    while step < last:
        if position == len(current):
            current, position, block = next(source_of_blocks), 0, block + 1
            network.dropout.refill()
        for group in optimizer.param_groups:
            group["lr"] = training["learning_rate"] * learning_rate_share(step, training)
        loss, tokens = loss_of(network, current[position], training["label_smoothing"])
        optimizer.zero_grad(set_to_none=True)
        (loss + training["balance_weight"] * network.balance()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training["clip_norm"])
        optimizer.step()
        step, position, tokens_seen = step + 1, position + 1, tokens_seen + tokens
        running = float(loss.detach()) if running == 0 else 0.98 * running + 0.02 * float(loss.detach())
        if step > training["steps"] * (1 - training["average_last"]) and step % training["average_every"] == 0:
            averaged += 1
            for name, tensor in network.state_dict().items():
                mean = average.setdefault(name, torch.zeros_like(tensor))
                mean += (tensor - mean) / averaged
        if step % training["checkpoint_every"] == 0 or step == last:
            elapsed = seconds + time.perf_counter() - started
            row = {
                "step": step,
                "tokens": tokens_seen,
                "seconds": round(elapsed),
                "loss": round(running, 4),
                "dev": round(held_out_loss(network, held_out), 4),
                "balance": round(float(network.balance().detach()), 3),
            }
            print(json.dumps(row), flush=True)
            with (options.output / "curve.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            save(
                checkpoint,
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "random": torch.get_rng_state(),
                    "average": average,
                    "averaged": averaged,
                    "step": step,
                    "tokens": tokens_seen,
                    "seconds": elapsed,
                    "block": block,
                    "position": position,
                },
            )
    if step == training["steps"]:
        network.load_state_dict(average)
        print(json.dumps({"averaged": averaged, "dev": round(held_out_loss(network, held_out), 4)}), flush=True)
        save(options.output / "final.pt", {"network": network.state_dict()})


if __name__ == "__main__":
    main()
