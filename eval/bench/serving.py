"""Time translation under mixed arrivals: sentences that join and leave between steps, against batches and single calls.

See `README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import torch
import transformers

from eval.bench.decoding_peers import Job as Batch
from eval.bench.decoding_peers import Transformers
from nllb_prune import MaskSet, ParallelText, Translator, calibrate, load_model, load_tokenizer, plan
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import length_limit
from nllb_prune.languages import Direction
from nllb_prune.model.source import embedded_text
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.runner import ModelRunner
from nllb_prune.tokenization import encode, language_id

TRANSFORMERS = "4.57.6"
_SKEW = 1.0  # of the directions' frequencies, as in Zipf's law


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes, in seconds from the start."""

    time: float
    text: str
    source: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What became of the requests of one run."""

    system: str
    rate: float | None
    """Requests a second that came in; `None`: all at once."""
    throughput: float
    """Requests a second that were answered, from the first arrival to the last answer."""
    latency: tuple[float, float, float]
    """Seconds from arrival to answer: median, 95th and 99th percentile."""
    rows: float | None
    """Sentences in a step, on average."""
    swaps: int | None
    """Of experts."""


class System(Protocol):
    """Something that answers requests."""

    name: str

    async def answer(self, arrival: Arrival) -> str:
        """Translate."""

    def figures(self) -> tuple[int, int, int]:
        """Return steps taken, rows in all of them, and swaps so far."""

    def close(self) -> None:
        """Let go of the model."""


class Engine:
    """Our engine.

    Args:
        name: In the table.
        model: Name of the model.
        masks: Of its languages.
        settings: Of `Translator`.
    """

    def __init__(
        self, name: str, model: str, masks: MaskSet, *, search: SearchSettings, dtype: str, device: str, **settings: Any
    ) -> None:
        self.name, self._search = name, search
        self._translator = Translator(model, masks, dtype=dtype, device=device, **settings)

    async def answer(self, arrival: Arrival) -> str:
        """Translate."""
        [found] = await self._translator.translate_async(
            [arrival.text], arrival.source, arrival.target, search=self._search, whole=True
        )
        return found.text

    def figures(self) -> tuple[int, int, int]:
        """Return steps taken, rows in all of them, and swaps so far."""
        opened = self._translator._opened
        return opened.runner.steps, opened.runner.rows, opened.engine.swaps

    def one_batch_at_a_time(self, *, mixed: bool) -> Engine:
        """Let nobody join before all others have left; if not `mixed`, of one direction at a time."""
        runner = self._translator._opened.runner
        choose = runner.choose
        runner.choose = lambda jobs: choose(_batch(runner, jobs, mixed=mixed))  # type: ignore[method-assign]
        return self

    def close(self) -> None:
        """Let go of the model."""
        self._translator.close()


def _batch(runner: ModelRunner, jobs: Iterable[Job], *, mixed: bool) -> Iterable[Job]:
    """Return what may join where nobody joins others."""
    if runner._jobs:
        return ()
    found = list(jobs)
    return found if mixed else [job for job in found if job.sides == found[0].sides]


class PerRequest:
    """`generate` of transformers, a request at a time, in the order of arrival."""

    def __init__(self, model: str, *, search: SearchSettings, dtype: str, device: str) -> None:
        self.name = f"transformers {TRANSFORMERS}, generate per request"
        self._search, self._tokenizer = search, load_tokenizer(model)
        self._peer = Transformers(model, dtype=getattr(torch, dtype), device=torch.device(device))
        self._queue: SimpleQueue[tuple[Sentence, Callable[[str], None]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            sentence, answer = item
            prepared = self._peer.prepare(Batch(sentences=[sentence], batch=1, beams=self._search.beams, threads=0))
            [tokens] = prepared.tokens(prepared.call()).values()
            answer(self._tokenizer.decode(tokens, skip_special_tokens=True))

    async def answer(self, arrival: Arrival) -> str:
        """Translate."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        [ids] = encode(self._tokenizer, [arrival.text], arrival.source)
        sentence = Sentence(
            key=0, source=ids, language=language_id(self._tokenizer, arrival.target), limit=length_limit(len(ids))
        )
        self._queue.put((sentence, lambda text: loop.call_soon_threadsafe(future.set_result, text)))
        return await future

    def figures(self) -> tuple[int, int, int]:
        """Return nothing: it is not ours to count."""
        return 0, 0, 0

    def close(self) -> None:
        """End the thread."""
        self._queue.put(None)
        self._thread.join()


def plan_masks(model: str, kept: float) -> tuple[MaskSet, list[Direction]]:
    """Calibrate on dev text, plan, and return all directions, those that are asked for most often first."""
    text = ParallelText.open(embedded_text(), split="dev")
    codes = text.languages
    ring = [(code, codes[(n + 1) % len(codes)]) for n, code in enumerate(codes)]
    with tempfile.TemporaryDirectory() as folder:
        counted = calibrate(load_model(model), load_tokenizer(model), text, ring, sentences=40, folder=Path(folder))
    directions = [(source, target) for source in codes for target in codes if source != target]
    random.Random(1).shuffle(directions)
    return plan(counted, kept=kept, ratio="1:1"), directions


def arrivals(directions: Sequence[Direction], *, count: int, rate: float | None, seed: int) -> list[Arrival]:
    """Return requests: directions by Zipf's law, gaps exponential, whatever becomes of those before."""
    chance, text = random.Random(seed), ParallelText.open(embedded_text(), split="test")
    weights = [1 / (rank + 1) ** _SKEW for rank in range(len(directions))]
    found, now = [], 0.0
    for source, target in chance.choices(directions, weights, k=count):
        now += chance.expovariate(rate) if rate else 0.0
        found.append(Arrival(now, chance.choice(text.lines(source)), source, target))
    return found


async def run(system: System, requests: Sequence[Arrival], *, rate: float | None) -> tuple[Measured, list[str]]:
    """Send requests at their times and measure how long each takes."""
    before = system.figures()
    start, took = time.perf_counter(), [0.0] * len(requests)
    ends = [0.0] * len(requests)

    async def one(number: int, request: Arrival) -> str:
        await asyncio.sleep(max(0.0, start + request.time - time.perf_counter()))
        found = await system.answer(request)
        ends[number] = time.perf_counter() - start
        took[number] = ends[number] - request.time
        return found

    found = await asyncio.gather(*(one(number, request) for number, request in enumerate(requests)))
    steps, rows, swaps = (after - old for after, old in zip(system.figures(), before, strict=True))
    percentiles = statistics.quantiles(took, n=100, method="inclusive")
    return Measured(
        system=system.name,
        rate=rate,
        throughput=len(requests) / max(ends),
        latency=(statistics.median(took), percentiles[94], percentiles[98]),
        rows=rows / steps if steps else None,
        swaps=swaps if steps else None,
    ), found


def systems(options: argparse.Namespace, masks: MaskSet) -> Iterable[Callable[[], System]]:
    """Yield makers of what is measured, one after the other: each has the memory for itself."""
    search = SearchSettings(beams=options.beams)
    shared = {"search": search, "dtype": options.dtype, "device": options.device}
    ours = {**shared, "model": options.model, "masks": masks, "beams": options.beams, "longest": 64}
    yield lambda: Engine("ours, joining between steps", **ours)
    yield lambda: Engine("ours, a mixed batch at a time", **ours).one_batch_at_a_time(mixed=True)
    yield lambda: Engine("ours, a batch of a direction at a time", **ours).one_batch_at_a_time(mixed=False)
    for memory in options.memory:
        yield lambda memory=memory: Engine(f"ours, paged in {memory}", **ours, memory=memory)  # type: ignore[misc]
    if transformers.__version__ == TRANSFORMERS:
        yield lambda: PerRequest(options.model, search=search, dtype=options.dtype, device=options.device)


def measure(options: argparse.Namespace) -> list[Measured]:
    """Measure every system at every rate; at the first, all requests come at once, and ours says what the rates are."""
    masks, directions = plan_masks(options.model, options.kept)
    results: list[Measured] = []
    most = 0.0
    expected: list[str] | None = None
    for make in systems(options, masks):
        system = make()
        whole = isinstance(system, PerRequest)
        few = arrivals(directions, count=16, rate=None, seed=0)
        asyncio.run(run(system, few, rate=None))  # to warm up
        count = options.requests // (8 if whole else 1)
        at_once, found = asyncio.run(run(system, arrivals(directions, count=count, rate=None, seed=1), rate=None))
        results.append(at_once)
        most = most or at_once.throughput
        if not whole:
            expected = expected or found
            print(f"{system.name}: {_same(found, expected)} translations as those of the first", flush=True)
        for share in options.shares:
            rate = share * most
            if whole and rate > 2 * at_once.throughput:
                continue  # it would fall behind for ever
            requests = arrivals(directions, count=count, rate=rate, seed=2)
            results.append(asyncio.run(run(system, requests, rate=rate))[0])
        system.close()
    return results


def _same(found: Sequence[str], expected: Sequence[str]) -> str:
    return f"{sum(a == b for a, b in zip(found, expected, strict=True))} of {len(expected)}"


def table(results: Sequence[Measured]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| system | arrivals/s | answers/s | median ms | 95 % ms | 99 % ms | rows a step | swaps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        rate = "all at once" if each.rate is None else f"{each.rate:.0f}"
        times = " | ".join(f"{1000 * seconds:.0f}" for seconds in each.latency)
        rows = "-" if each.rows is None else f"{each.rows:.1f}"
        swaps = "-" if each.swaps is None else str(each.swaps)
        lines.append(f"| {each.system} | {rate} | {each.throughput:.1f} | {times} | {rows} | {swaps} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--model", default="mini", help="`mini`, a folder or a Hub id with the languages of `mini`")
    made.add_argument("--requests", type=int, default=1200)
    made.add_argument("--shares", type=float, nargs="*", default=[0.3, 0.6, 0.9], help="rates, of our throughput")
    made.add_argument("--memory", nargs="*", default=[], help="also paged in so much memory, as in 40MB")
    made.add_argument("--kept", type=float, default=0.25, help="share of the experts that each language keeps")
    made.add_argument("--beams", type=int, default=1)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--json", action="store_true")
    return made


def main() -> None:
    """Measure and print."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    results = measure(options)
    if options.json:
        print(json.dumps([asdict(each) for each in results]))
        return
    print(f"{platform.processor() or platform.machine()}, torch {version('torch')}, {options.threads} thread(s)\n")
    print(table(results))


if __name__ == "__main__":
    main()
