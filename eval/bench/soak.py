"""Translate many requests of mixed languages within a small memory, and watch memory and answers.

See `README.md`.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from eval.bench.near_ties import NEAR, margin_of
from eval.bench.serving import plan_masks
from nllb_prune import MaskSet, ParallelText, Translator, load_model, load_tokenizer, translations
from nllb_prune.generation.translate import Translation
from nllb_prune.languages import Direction
from nllb_prune.model.source import embedded_text

_TOGETHER = 1000

Request = tuple[str, str, str]
"""Sentence, source, target."""


def draw(directions: Sequence[Direction], count: int) -> list[Request]:
    """Return requests: directions by Zipf's law, sentences of the test text."""
    chance, text = random.Random(3), ParallelText.open(embedded_text(), split="test")
    weights = [1 / (rank + 1) for rank in range(len(directions))]
    return [(chance.choice(text.lines(a)), a, b) for a, b in chance.choices(directions, weights, k=count)]


def offline(model: str, masks: MaskSet, requests: Sequence[Request], threads: int) -> dict[Request, Translation]:
    """Translate what is asked for, each request once, with the whole model in memory."""
    torch.set_num_threads(threads)
    distinct = list(dict.fromkeys(requests))
    texts, sources, targets = zip(*distinct, strict=True)
    found = translations(load_model(model), load_tokenizer(model), texts, source=sources, target=targets, masks=masks)
    return {request: best for request, [best] in zip(distinct, found, strict=True)}


class Memory(threading.Thread):
    """Takes note of the resident memory of this process, and of what of it is no page of a file."""

    def __init__(self, every: float) -> None:
        super().__init__(daemon=True)
        self.every, self.samples = every, list[tuple[float, int]]()
        self._over = threading.Event()

    def run(self) -> None:
        """Look at it again and again."""
        start = time.monotonic()
        while not self._over.wait(self.every):
            self.samples.append((time.monotonic() - start, anonymous()))

    def finish(self) -> list[int]:
        """Stop, and return the samples, in bytes."""
        self._over.set()
        self.join()
        return [size for _, size in self.samples]


def anonymous() -> int:
    """Return the bytes of anonymous memory that are resident (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def ask(
    translator: Translator, requests: Sequence[Request], expected: Mapping[Request, Translation], clients: int
) -> list[Request]:
    """Send requests from so many clients, each waiting for its answer; return those that were answered otherwise."""

    def one(request: Request) -> Request | None:
        text, source, target = request
        [found] = translator.translate([text], source, target, whole=True)
        return None if found.text == expected[request].text else request

    different: list[Request] = []
    with ThreadPoolExecutor(clients) as pool, tqdm(total=len(requests), desc="requests") as bar:
        for first in range(0, len(requests), _TOGETHER):  # what waits for answers is no leak, but takes memory too
            some = requests[first : first + _TOGETHER]
            different += [request for request in pool.map(one, some) if request is not None]
            bar.update(len(some))
    return different


def main() -> None:
    """Run and print."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", default="mini")
    made.add_argument("--requests", type=int, default=20_000)
    made.add_argument("--clients", type=int, default=64)
    made.add_argument("--memory", default="55MB")
    made.add_argument("--kept", type=float, default=0.25)
    made.add_argument("--threads", type=int, default=1)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    masks, directions = plan_masks(options.model, options.kept)
    requests = draw(directions, options.requests)
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # what it takes is not to be counted here
        expected = apart.submit(offline, options.model, masks, requests, options.threads).result()
    with Translator(options.model, masks, memory=options.memory, longest=256, beams=1) as translator:
        before = anonymous()
        warm = min(len(requests) // 10, 2000)
        start = time.monotonic()
        different = ask(translator, requests[:warm], expected, options.clients)
        watch = Memory(0.5)
        watch.start()
        different += ask(translator, requests[warm:], expected, options.clients)
        seconds, samples = time.monotonic() - start, watch.finish()
        figures, plan = translator.figures(), translator.plan
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    margins = sorted(margin_of(model, tokenizer, request, masks) for request in different)
    ties = sum(margin < NEAR for margin in margins)
    shown = ", ".join(f"{margin:.0e}" for margin in margins) or "none"
    tenth = max(1, len(samples) // 10)
    medians = [sorted(samples[n : n + tenth])[tenth // 2] for n in range(0, tenth * (len(samples) // tenth), tenth)]
    print(
        f"{len(requests)} requests in {len(set(directions))} directions from {options.clients} clients, "
        f"{len(requests) / seconds:.1f} a second; memory {options.memory} ({plan.fixed} dense, {plan.experts} slots, "
        f"{plan.working} working)\n"
        f"swaps {figures.swaps}, experts moved {figures.experts_moved}, {figures.bytes_moved / 1e9:.2f} GB\n"
        f"answers: {len(requests) - len(different)} as offline, {ties} near-ties, {len(different) - ties} wrong "
        f"(margins: {shown})\n"
        f"anonymous memory, MB: {before / 1e6:.0f} before; medians of ten parts of the time after {warm} requests: "
        f"{', '.join(f'{size / 1e6:.0f}' for size in medians)}\n"
        f"working memory set aside at most: {figures.working_peak} of {plan.working}"
    )


if __name__ == "__main__":
    main()
