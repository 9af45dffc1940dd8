"""Replay arrival traces under our scheduling policy and others, without a model: swaps, waiting and throughput."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.planning.memory import parse_memory
from nllb_prune.serving.holding import TURNS
from nllb_prune.serving.memory import Counts, Needs, counts_of, plan_memory
from nllb_prune.serving.residency import Residency
from nllb_prune.serving.scheduler import Scheduler

from .arrivals import MIXES, Arrived, read_trace, record, write_trace
from .in_order import InOrder
from .simulation import Costs, Policy, Replay, SimulatedRunner, random_masks, replay

_HEAD = (
    "trace | slots | policy | swaps / 1,000 | experts copied / sentence | GB / 1,000 | waiting mean s | p99 | most | "
    "of the bound | worst language, mean s | finished p50 s | p99 | sentences/s | in flight"
)
_DIGITS = {"swaps": 0, "gigabytes": 0, "wait_mean": 2, "wait_p99": 2, "of_bound": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a policy did with a trace; seconds where nothing else is said."""

    swaps: float
    """For 1,000 sentences."""
    experts: float
    """Copied for a sentence."""
    gigabytes: float
    """Copied for 1,000 sentences."""
    wait_mean: float
    """Until a sentence joined."""
    wait_p99: float
    wait_most: float
    of_bound: float | None
    """The largest part of its bound that a sentence waited; `None` where none is promised."""
    worst_language: float
    """Mean wait of the target language that waited longest."""
    finished_p50: float
    """Until a sentence was finished."""
    finished_p99: float
    rate: float
    """Sentences finished a second."""
    rows: float
    """Sentences in flight, in the mean."""


def measure(done: Replay, costs: Costs) -> Measured:
    """Measure what became of a trace."""
    came = np.array([each.seconds for each in done.trace])
    waits, finished = np.array(done.joined) - came, np.array(done.finished) - came
    by_target: dict[str, list[float]] = defaultdict(list)
    for each, wait in zip(done.trace, waits.tolist(), strict=True):
        by_target[each.target].append(wait)
    return Measured(
        swaps=1e3 * done.swaps / len(came),
        experts=done.moved / len(came),
        gigabytes=done.moved * costs.expert / 1e6 / len(came),
        wait_mean=float(waits.mean()),
        wait_p99=float(np.percentile(waits, 99)),
        wait_most=float(waits.max()),
        of_bound=None if done.overdue_after is None else float((waits / bounds(done, costs)).max()),
        worst_language=max(float(np.mean(each)) for each in by_target.values()),
        finished_p50=float(np.percentile(finished, 50)),
        finished_p99=float(np.percentile(finished, 99)),
        rate=len(came) / (max(done.finished) - float(came[0])),
        rows=done.rows,
    )


def bounds(done: Replay, costs: Costs) -> list[float]:
    """Return the most seconds that each sentence may wait.

    When it is overdue, a swap may be under way. Then the sides of those before it that still wait, and its own, come
    one group after the other, each when the sentences in flight that are in its way are finished; and all of them need
    room, which there is when others are finished.
    """
    assert done.overdue_after is not None, "of a policy that has a bound"
    longest = max(each.tokens for each in done.trace)
    drain, copy = (longest + TURNS) * costs.turn(longest), costs.copy(done.largest)
    room = max(1, min(costs.rows, costs.positions // longest))
    numbers: dict[tuple[str, str], int] = {}
    group = np.array([numbers.setdefault((each.source, each.target), len(numbers)) for each in done.trace])
    joined, found = np.array(done.joined), []
    for number, each in enumerate(done.trace):
        before = group[:number][joined[:number] > each.seconds + done.overdue_after]
        swaps, batches = len(np.unique(before)) + 1, len(before) // room + 1
        found.append(done.overdue_after + copy + swaps * (drain + copy) + batches * drain)
    return found


def slots_of(text: str, least: Counts, most: Counts, expert: float) -> Counts:
    """Return the slots that a text stands for: `all`, an amount of memory, or times the experts of the largest side.

    Raises:
        UsageError: if it is none of these, or too little.
    """
    if text == "all":
        return most
    if text.upper().endswith("B"):
        bytes_of = dict.fromkeys(least, int(expert))
        needs = Needs(
            fixed=0,
            expert=bytes_of,
            least=least,
            most=most,
            least_working=0,
            usual_working=0,
            staying=frozenset({"decoder"}),
            largest=(),
        )
        return plan_memory(needs, parse_memory(text)).slots
    try:
        times = float(text)
    except ValueError:
        raise UsageError(
            f"`slots` must be `all`, an amount such as 40GB, or a factor, but is {text} instead."
        ) from None
    return {
        stack: tuple(min(high, int(times * low)) for low, high in zip(least[stack], most[stack], strict=True))
        for stack in least
    }


def policies(patience: Sequence[float]) -> dict[str, Callable[[Residency], Policy]]:
    """Return ours with each patience, and what it is compared with."""
    ours = {f"ours, {seconds:g} s": _ours(seconds) for seconds in patience}
    return {**ours, "first come": InOrder, "one direction": lambda residency: InOrder(residency, alone=True)}


def _ours(patience: float) -> Callable[[Residency], Policy]:
    return lambda residency: Scheduler(residency, patience=patience)


def main() -> None:
    """Print a Markdown table, or record a trace."""
    options = _parser().parse_args()
    try:
        _run(options)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    traces = parser.add_argument_group("traces")
    traces.add_argument("--trace", type=Path, nargs="+", metavar="FILE", help="replay these; by default new ones")
    traces.add_argument("--record", type=Path, metavar="FILE", help="write a trace of the first mix and rate, and end")
    traces.add_argument("--mix", nargs="+", choices=list(MIXES), default=list(MIXES))
    traces.add_argument("--requests", type=int, default=1000, help="sentences (default: %(default)s)")
    traces.add_argument("--rate", type=float, nargs="+", default=[2.0, 8.0], help="a second (default: 2 8)")
    traces.add_argument("--seed", type=int, default=0)
    policy = parser.add_argument_group("policies and memory")
    policy.add_argument("--patience", type=float, nargs="+", default=[0.5, 2.0, 8.0], help="seconds (default: .5 2 8)")
    policy.add_argument(
        "--slots",
        nargs="+",
        default=["24GB", "40GB", "60GB"],
        help="an amount for all experts such as 40GB, times the experts of a language in each layer such as 1.25, or "
        "`all` (default: 24GB 40GB 60GB)",
    )
    policy.add_argument("--slots-encoder", type=int, help="of a layer; with --slots-decoder instead of --slots")
    policy.add_argument("--slots-decoder", type=int)
    costs = parser.add_argument_group("costs in seconds, bytes and numbers; what they are: `Costs` in simulation.py")
    for field in fields(Costs):
        costs.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--json", action="store_true", help="print the numbers for a program")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.record is not None:
        trace = record(options.mix[0], requests=options.requests, rate=options.rate[0], seed=options.seed)
        write_trace(options.record, trace)
        return
    rows: list[dict[str, object]] = []
    for names, measured in _measured(options):
        if not options.json and not rows:
            print(f"| {_HEAD} |\n|{'---|' * len(_HEAD.split(' | '))}")
        rows.append({**dict(zip(("trace", "slots", "policy"), names, strict=True)), **asdict(measured)})
        if not options.json:
            print(f"| {' | '.join([*names, *_cells(measured)])} |", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


def _cells(measured: Measured) -> list[str]:
    return ["" if number is None else f"{number:.{_DIGITS.get(name, 1)}f}" for name, number in asdict(measured).items()]


def _measured(options: argparse.Namespace) -> Iterator[tuple[tuple[str, str, str], Measured]]:
    """Replay each trace with each memory under each policy."""
    costs = Costs(**{field.name: getattr(options, field.name) for field in fields(Costs)})
    masks = random_masks()
    least, most = counts_of(masks)
    slots = {text: slots_of(text, least, most, costs.expert) for text in options.slots}
    if options.slots_encoder is not None and options.slots_decoder is not None:
        given = {"encoder": options.slots_encoder, "decoder": options.slots_decoder}
        slots = {
            f"{options.slots_encoder} + {options.slots_decoder}": {
                stack: (count,) * len(least[stack]) for stack, count in given.items()
            }
        }
    for name, trace in _traces(options):
        for text, counts in slots.items():
            for policy, make in policies(options.patience).items():
                residency = Residency(masks, counts)
                done = replay(trace, make(residency), SimulatedRunner(costs))
                yield (name, text, policy), measure(done, costs)


def _traces(options: argparse.Namespace) -> Iterator[tuple[str, list[Arrived]]]:
    """Read the traces; without any, record them in a temporary folder first."""
    if options.trace is not None:
        yield from ((path.stem, read_trace(path)) for path in options.trace)
        return
    with tempfile.TemporaryDirectory() as folder:
        for mix in options.mix:
            for rate in options.rate:
                path = Path(folder) / f"{mix}.tsv"
                write_trace(path, record(mix, requests=options.requests, rate=rate, seed=options.seed))
                yield f"{mix}, {rate:g}/s", read_trace(path)


if __name__ == "__main__":
    main()
