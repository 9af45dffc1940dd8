"""A translation server under load, overload and signals, with every answer compared to the one found offline.

See `README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time
from collections.abc import Sequence
from statistics import median

import torch
from tqdm import tqdm

from eval.bench.http_clients import Reply, Request, closed_loop, open_loop
from eval.bench.http_server import ServerProcess, figures
from eval.bench.near_ties import NEAR, margin_of
from nllb_prune import MaskSet, ParallelText, SearchSettings, Translator, load_model, load_tokenizer
from nllb_prune.model.source import embedded_masks, embedded_text

_LISTS = 0.2  # of the requests, of 2 to 8 texts
_BEAMS = 4  # in overload, so that a client can ask for several times what the server can do
_OPTIONS = ("--threads", "1", "--masks", str(embedded_masks()))

_UNTIL_STOPPED = 3.0  # seconds

Text = tuple[str, str, str]
"""Text, source, target."""


def draw(count: int, *, seed: int) -> list[Request]:
    """Return requests: directions by Zipf's law, lines of the test text, one or several."""
    chance, text = random.Random(seed), ParallelText.open(embedded_text(), split="test")
    directions = [(a, b) for a in text.languages for b in text.languages if a != b]
    chance.shuffle(directions)
    weights = [1 / (rank + 1) for rank in range(len(directions))]
    return [
        Request(tuple(chance.choices(text.lines(a), k=chance.randint(2, 8) if chance.random() < _LISTS else 1)), a, b)
        for a, b in chance.choices(directions, weights, k=count)
    ]


def texts_of(requests: Sequence[Request]) -> list[Text]:
    """Return the different texts of requests."""
    return list(dict.fromkeys((text, each.source, each.target) for each in requests for text in each.texts))


def wrong(replies: Sequence[Reply], *, beams: int = 1) -> str:
    """Compare answers with those found offline; of greedy ones that differ, say by how much of a margin."""
    answered = [reply for reply in replies if reply.status == 200]
    texts = texts_of([reply.request for reply in answered])
    masks = MaskSet.load(embedded_masks())
    with Translator("mini", masks) as translator:
        columns = (list(each) for each in zip(*texts, strict=True))
        found = translator.translate(*columns, search=SearchSettings(beams=beams))
    expected = {text: each.text for text, each in zip(texts, found, strict=True)}
    pairs = [
        ((text, reply.request.source, reply.request.target), got)
        for reply in answered
        for text, got in zip(reply.request.texts, reply.texts, strict=True)
    ]
    different = [text for text, got in pairs if got != expected[text]]
    if beams > 1:
        return f"{len(pairs)} texts: {len(pairs) - len(different)} as offline, {len(different)} otherwise"
    model, tokenizer = load_model("mini"), load_tokenizer("mini")
    margins = [margin_of(model, tokenizer, text, masks) for text in different]
    ties = sum(margin < NEAR for margin in margins)
    return (
        f"{len(pairs)} texts: {len(pairs) - len(different)} as offline, {ties} near-ties, {len(margins) - ties} wrong"
    )


def load(options: argparse.Namespace) -> None:
    """Send requests from many clients, and look at answers, times and memory."""
    requests = draw(options.requests, seed=1)
    samples: list[int] = []
    with ServerProcess("mini", *_OPTIONS, *_memory(options)) as server, tqdm(total=len(requests)) as bar:
        start = time.monotonic()
        every = max(1, len(requests) // 500)

        def told(_: Reply) -> None:
            bar.update()
            if bar.n % every == 0:
                samples.append(server.anonymous())

        replies = asyncio.run(closed_loop(server.url, requests, clients=options.clients, told=told))
        seconds = time.monotonic() - start
        counted = figures(server.url, ("nllb_prune_rows_total", "nllb_prune_steps_total", "nllb_prune_swaps_total"))
    rows, steps, swaps = counted.values()
    texts = sum(len(request.texts) for request in requests)
    print(f"{len(requests)} requests, {texts} texts, {options.clients} clients: {_statuses(replies)}")
    print(f"{len(requests) / seconds:.0f} requests and {texts / seconds:.0f} texts a second; {_percentiles(replies)}")
    print(f"mean batch {rows / max(1, steps):.1f}, {swaps:.0f} swaps; ready {server.ready_after:.1f} s after the start")
    print(f"anonymous memory, MB, medians of ten parts of the time: {_parts(samples)}")
    print(wrong(replies))


def overload(options: argparse.Namespace) -> None:
    """Find out how much the server can do, ask for five times as much, and for half of it afterwards."""
    limits = ("--beams", str(_BEAMS), "--longest-wait", str(options.longest_wait))
    with ServerProcess("mini", *_OPTIONS, *limits) as server:
        warm = draw(600, seed=2)
        start = time.monotonic()
        asyncio.run(closed_loop(server.url, warm, clients=16))
        capacity = len(warm) / (time.monotonic() - start)
        rate = options.times * capacity
        requests = draw(round(rate * options.seconds), seed=3)
        replies = asyncio.run(open_loop(server.url, requests, rate=rate))
        after = asyncio.run(open_loop(server.url, draw(round(5 * capacity), seed=4), rate=capacity / 2))
    accepted = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status != 200]
    print(f"capacity {capacity:.1f} requests a second with 16 clients; {rate:.0f} a second for {options.seconds:g} s")
    print(f"{_statuses(replies)}; {len(accepted) / options.seconds:.1f} answers a second")
    print(f"accepted: {_percentiles(accepted)}\nrefused: {_percentiles(refused)}")
    print(f"Retry-After of the refused: {sorted({reply.retry_after for reply in refused if reply.retry_after})}")
    print(f"afterwards at half of the capacity: {_statuses(after)}; {_percentiles(after)}")
    print(wrong([*replies, *after], beams=_BEAMS))


def signals(options: argparse.Namespace) -> None:
    """Stop a server under load, in good time and at once, and start it again."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        replies, status = asyncio.run(_stopped(number, options))
        before = [reply for reply in replies if reply.began < _UNTIL_STOPPED]
        print(f"{number.name}: status {status}; begun before it: {_statuses(before)}; all: {_statuses(replies)}")
        print(wrong(replies))
    with ServerProcess("mini", *_OPTIONS) as again:
        print(f"started again: ready after {again.ready_after:.1f} s")


async def _stopped(number: signal.Signals, options: argparse.Namespace) -> tuple[list[Reply], int]:
    with ServerProcess("mini", *_OPTIONS) as server:
        load = asyncio.create_task(closed_loop(server.url, draw(1000, seed=5), clients=options.clients))
        await asyncio.sleep(_UNTIL_STOPPED)
        server.signal(number)
        status = await asyncio.to_thread(server.wait)
        return await load, status


def _memory(options: argparse.Namespace) -> tuple[str, ...]:
    return () if options.memory is None else ("--memory", options.memory)


def _statuses(replies: Sequence[Reply]) -> str:
    counts = {status: sum(reply.status == status for reply in replies) for status in {r.status for r in replies}}
    return ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(counts.items()))


def _percentiles(replies: Sequence[Reply]) -> str:
    seconds = sorted(reply.seconds for reply in replies)
    if not seconds:
        return "none"
    shown = {share: seconds[min(len(seconds) - 1, int(share / 100 * len(seconds)))] for share in (50, 90, 99)}
    return ", ".join(f"{share} %: {1000 * value:.0f} ms" for share, value in {**shown, 100: seconds[-1]}.items())


def _parts(samples: Sequence[int]) -> str:
    tenth = max(1, len(samples) // 10)
    return " ".join(f"{median(samples[n : n + tenth]) / 1e6:.0f}" for n in range(0, tenth * 10, tenth) if samples[n:])


def main() -> None:
    """Run what is asked for."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("what", choices=("load", "overload", "signals"))
    made.add_argument("--requests", type=int, default=2000)
    made.add_argument("--clients", type=int, default=64)
    made.add_argument("--memory", help="of the server, as in 55MB (default: all experts are in memory)")
    made.add_argument("--times", type=float, default=5.0, help="of the capacity, in overload")
    made.add_argument("--seconds", type=float, default=30.0, help="of overload")
    made.add_argument("--longest-wait", type=float, default=2.0)
    options = made.parse_args()
    torch.set_num_threads(1)
    {"load": load, "overload": overload, "signals": signals}[options.what](options)


if __name__ == "__main__":
    main()
