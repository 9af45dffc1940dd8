"""Count the experts that replicas on Ray move, when languages keep to replicas and when any replica gets any request.

See `README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any

import ray
from ray import serve
from tqdm import tqdm

from nllb_prune import ParallelText
from nllb_prune.model.source import embedded_masks, embedded_text
from nllb_prune.serving.figures import Figures
from nllb_prune.serving.http.backend import Ask
from nllb_prune.serving.on_ray.backend import RayBackend
from nllb_prune.serving.on_ray.replica import Replica, languages_held
from nllb_prune.serving.on_ray.settings import RaySettings

_APPLICATION = "replicas"
_UNTIL_TOLD = 1.0  # seconds; replicas tell Ray of their languages every tenth of a second

Counts = dict[str, tuple[Figures, Counter[str]]]
"""What each replica has done so far, and how many requests it had for each language, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests come to replicas of a size."""

    memory: str
    """Of each replica."""
    clients: int
    """Each waits for its answer before it asks again."""
    zipf: bool
    """Whether languages are asked for by Zipf's law, instead of equally often."""

    def __str__(self) -> str:
        return f"{self.memory}, {self.clients} client{'s' * (self.clients > 1)}, {'Zipf' if self.zipf else 'even'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What became of the requests of a load."""

    moved: float
    """Experts for each request."""
    swaps: float
    """For each request."""
    asked: tuple[Counter[str], ...]
    """Requests for each language, by replica, the one that had most of all first."""
    held: int
    """Target languages that are kept to a replica, by default as many as its memory holds."""


class CountingReplica(Replica):
    """A replica that counts the requests it has had for each language."""

    def __init__(self, model: str, **named: Any) -> None:
        super().__init__(model, **named)
        self._asked: Counter[str] = Counter()

    async def translate(self, ask: Ask) -> Any:
        """Translate."""
        self._asked[ask.target] += 1
        return await super().translate(ask)

    async def counts(self) -> tuple[str, Figures, Counter[str]]:
        """Return the name of the replica, what it has done so far, and for which languages."""
        state = await self.state()
        return state.name, state.figures, self._asked


class AnyReplica:
    """Stands for the handle of a deployment, and tells Ray of no language."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def options(self, **_: Any) -> Any:
        """Return the handle as it is."""
        return self._handle


def draw(source: str, *, count: int, zipf: bool, seed: int) -> list[Ask]:
    """Return requests: languages by a law, sentences of the test text."""
    chance, text = random.Random(seed), ParallelText.open(embedded_text(), split="test")
    targets = [code for code in text.languages if code != source]
    weights = [1 / (rank + 1) if zipf else 1 for rank in range(len(targets))]
    found = []
    for target in chance.choices(targets, weights, k=count):
        one = chance.choice([code for code in text.languages if code != target]) if source == "all" else source
        found.append(Ask(texts=(chance.choice(text.lines(one)),), sources=(one,), target=target))
    return found


async def ask(backend: RayBackend, asks: Sequence[Ask], clients: int) -> None:
    """Send requests in their order from so many clients, each waiting for its answer."""
    left = iter(asks)

    async def client() -> None:
        for each in left:
            await backend.translate(each)

    await asyncio.gather(*(client() for _ in range(clients)))


async def measure(handle: Any, load: Load, options: argparse.Namespace, *, kept: bool) -> Measured:
    """Warm up, and count what happens from then on."""
    replicas = RayBackend(handle)
    await replicas.wait()
    asked = replicas if kept else RayBackend(AnyReplica(handle))
    warm = draw(options.source, count=options.warm, zipf=load.zipf, seed=1)
    await ask(asked, warm, load.clients)
    await asyncio.sleep(_UNTIL_TOLD)
    before = await _counts(replicas)
    await ask(asked, draw(options.source, count=options.requests, zipf=load.zipf, seed=2), load.clients)
    after = await _counts(replicas)
    if before.keys() != after.keys():
        raise RuntimeError("The replicas must be the same before and after, but one of them has died.")
    [state, *_] = await replicas.states()
    targets = {target for _, target in (await replicas.describe()).directions}
    asked_of = [after[name][1] - before[name][1] for name in before]
    return Measured(
        moved=sum(after[name][0].experts_moved - before[name][0].experts_moved for name in before) / options.requests,
        swaps=sum(after[name][0].swaps - before[name][0].swaps for name in before) / options.requests,
        asked=tuple(sorted(asked_of, key=Counter.total, reverse=True)),
        held=options.kept_languages or languages_held(state.plan, state.sides, targets),
    )


async def _counts(backend: RayBackend) -> Counts:
    return {name: (figures, asked) for name, figures, asked in await backend._of_all("counts")}


@contextmanager
def local_ray(replicas: int) -> Iterator[None]:
    """Start Ray on this machine alone, and end it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        "local",
        num_cpus=replicas,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        _node_ip_address="127.0.0.1",
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def deployed(memory: str, options: argparse.Namespace) -> Iterator[Any]:
    """Start replicas that have done nothing yet, and end them."""
    deployment = serve.deployment(
        CountingReplica,
        name="Replica",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=RaySettings(model="mini").requests,
        user_config={"masks": str(embedded_masks())},
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"enable_access_log": False},
    )
    bound = deployment.bind("mini", kept_languages=options.kept_languages, memory=memory)
    try:
        yield serve.run(bound, name=_APPLICATION, route_prefix=None)
    finally:
        serve.delete(_APPLICATION)


def moves(results: Sequence[tuple[Load, Measured, Measured]]) -> str:
    """Return what was moved, and who had the requests, as Markdown."""
    lines = [
        "| load | experts moved, any replica | kept | swaps, any replica | kept | % of requests, any replica | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for load, free, kept in results:
        numbers = (f"{free.moved:.2f}", f"{kept.moved:.2f}", f"{free.swaps:.3f}", f"{kept.swaps:.3f}")
        lines.append(f"| {' | '.join((str(load), *numbers, _shares(free), _shares(kept)))} |")
    return "\n".join(lines)


def _shares(measured: Measured) -> str:
    """Return what part of the requests each replica had."""
    totals = [asked.total() for asked in measured.asked]
    return " + ".join(f"{100 * total / sum(totals):.0f}" for total in totals)


def stickiness(results: Sequence[tuple[Load, Measured, Measured]]) -> str:
    """Return the requests for each language by replica, where languages keep to them, as Markdown."""
    lines = [f"| kept | {' | '.join(str(load) for load, _, _ in results)} |", f"|{'---|' * (len(results) + 1)}"]
    columns = [kept.asked for _, _, kept in results]
    for language in sorted(set[str]().union(*(asked for column in columns for asked in column))):
        counts = (" + ".join(str(asked[language]) for asked in column) for column in columns)
        lines.append(f"| {language} | {' | '.join(counts)} |")
    lines.append(f"| at its main replica, kept | {' | '.join(_at_main(kept) for _, _, kept in results)} |")
    lines.append(f"| at its main replica, any | {' | '.join(_at_main(free) for _, free, _ in results)} |")
    return "\n".join(lines)


def _at_main(measured: Measured) -> str:
    """Return what part of the requests went to the replica that had most of their language."""
    languages = set[str]().union(*measured.asked)
    most = sum(max(asked[language] for asked in measured.asked) for language in languages)
    return f"{100 * most / sum(asked.total() for asked in measured.asked):.1f} %"


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--replicas", type=int, default=2)
    made.add_argument("--memory", nargs="+", default=["80MB", "90MB"], help="of each replica")
    made.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    made.add_argument("--requests", type=int, default=300, help="that are counted, of each load")
    made.add_argument("--warm", type=int, default=200, help="requests before them")
    made.add_argument("--kept-languages", type=int, help="to a replica; by default as many as its memory holds")
    made.add_argument("--source", default="eng_Latn", help="language of the sentences; `all` for any")
    return made


def main() -> None:
    """Measure and print."""
    options = parser().parse_args()
    loads = [Load(memory=m, clients=c, zipf=z) for m, c, z in product(options.memory, options.clients, (False, True))]
    results = []
    with local_ray(options.replicas), tqdm(total=2 * len(loads), desc="loads") as bar:
        for load in loads:
            found = dict[bool, Measured]()
            for kept in (False, True):
                with deployed(load.memory, options) as handle:
                    found[kept] = asyncio.run(measure(handle, load, options, kept=kept))
                bar.update()
            results.append((load, found[False], found[True]))
    held = {load.memory: measured.held for load, _, measured in results}
    print(
        f"Ray {version('ray')}, {options.replicas} replicas, from {options.source}, {options.requests} requests after "
        f"{options.warm}; languages kept to a replica: {', '.join(f'{n} in {memory}' for memory, n in held.items())}\n"
    )
    print(moves(results))
    print()
    print(stickiness(results))


if __name__ == "__main__":
    main()
