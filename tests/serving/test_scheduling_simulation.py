"""Scheduling without a model: recorded arrivals of 202 languages, and worst cases of a few, on a simulated clock."""

from collections import Counter
from functools import cache

import numpy as np
import pytest

from eval.bench.arrivals import MIXES, Arrived, read_trace, record, write_trace
from eval.bench.in_order import InOrder
from eval.bench.scheduling import bounds, measure, slots_of
from eval.bench.simulation import Costs, SimulatedRunner, jobs_of, random_masks, replay
from nllb_prune.errors import UsageError
from nllb_prune.serving.memory import counts_of
from nllb_prune.serving.residency import Arrival, Residency
from nllb_prune.serving.scheduler import Scheduler

COSTS = Costs()
MASKS = random_masks()
PATIENCE = 2.0
POLICIES = {
    "ours": lambda residency: Scheduler(residency, patience=PATIENCE),
    "first come": InOrder,
    "one direction": lambda residency: InOrder(residency, alone=True),
}


@cache
def replayed(mix, memory, policy, rate=4.0, requests=100):
    """Replay a trace; what joins, and what is in flight at each step, is checked to have its experts in slots."""
    residency = Residency(MASKS, slots_of(memory, *counts_of(MASKS), COSTS.expert))
    trace = record(mix, requests=requests, rate=rate, seed=0)
    return replay(trace, POLICIES[policy](residency), SimulatedRunner(COSTS, MASKS))


def test_a_trace_is_the_same_for_the_same_seed_and_comes_back_from_its_file(tmp_path):
    for mix in MIXES:
        drawn = record(mix, requests=50, rate=10.0, seed=3)
        assert drawn == record(mix, requests=50, rate=10.0, seed=3) != record(mix, requests=50, rate=10.0, seed=4)
        assert all(each.source != each.target for each in drawn)
        write_trace(tmp_path / "trace.tsv", drawn)
        assert read_trace(tmp_path / "trace.tsv") == drawn


@pytest.mark.parametrize("mix", MIXES)
def test_a_trace_has_its_rate(mix):
    drawn = record(mix, requests=4000, rate=10.0, seed=0)
    assert len(drawn) / drawn[-1].seconds == pytest.approx(10.0, rel=0.25)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time\tfrom\n", "must begin with the columns"),
        ("seconds\tsource\ttarget\ttokens\n1.0\ta\tb\n", "trace.tsv:2 is"),
        ("seconds\tsource\ttarget\ttokens\n2.0\ta\tb\t3\n1.0\ta\tb\t3\n", "order of its seconds"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, words):
    (tmp_path / "trace.tsv").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_trace(tmp_path / "trace.tsv")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("mix", "memory"), [("skewed", "20GB"), ("bursts", "30GB"), ("uniform", "1")])
def test_each_sentence_comes_out_once_with_its_experts_in_memory(mix, memory, policy):
    done = replayed(mix, memory, policy)
    came = np.array([each.seconds for each in done.trace])
    assert (np.array(done.joined) >= came).all()
    least = [each.tokens * (COSTS.step + COSTS.row) for each in done.trace]
    assert (np.array(done.finished) - done.joined >= least).all()


def test_the_same_trace_gives_the_same_figures():
    figures = [measure(replayed.__wrapped__("bursts", "30GB", "ours"), COSTS) for _ in range(2)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("mix", "memory"), [("skewed", "20GB"), ("skewed", "40GB"), ("bursts", "30GB"), ("uniform", "1")]
)
def test_nobody_waits_longer_than_the_bound(mix, memory):
    done = replayed(mix, memory, "ours")
    waits = np.array(done.joined) - [each.seconds for each in done.trace]
    assert (waits <= bounds(done, COSTS)).all()


@pytest.mark.parametrize(("memory", "rate"), [("22GB", 2.0), ("30GB", 4.0), ("40GB", 8.0)])
def test_fewer_swaps_than_first_come_first_served_and_shorter_waits(memory, rate):
    ours, theirs = (measure(replayed("skewed", memory, policy, rate, 250), COSTS) for policy in ("ours", "first come"))
    assert ours.swaps < 0.95 * theirs.swaps
    assert ours.wait_p99 < 0.8 * theirs.wait_p99
    assert ours.wait_mean < 0.8 * theirs.wait_mean


def test_a_decision_looks_at_few_groups(monkeypatch):
    """However many directions wait, only some are tried for a swap."""
    calls = Counter()
    for name in ("fits", "missing", "swap"):
        monkeypatch.setattr(Residency, name, counted(calls, name, getattr(Residency, name)))
    scheduler = Scheduler(Residency(MASKS, slots_of("24GB", *counts_of(MASKS), COSTS.expert)), patience=1e9)
    for job in jobs_of(record("uniform", requests=1000, rate=1000.0, seed=0)):
        scheduler.add(job)
    for _ in range(5):
        calls.clear()
        swap = scheduler.next_swap(2.0)
        assert 0 < max(calls.values()) <= 2 * 64
        if swap is None:
            break
        scheduler.swapped(swap, Arrival(swap.moves))
        scheduler.joined(list(scheduler.joinable(2.0))[:1], 2.0)


def counted(calls, name, method):
    def call(*args, **kwargs):
        calls[name] += 1
        return method(*args, **kwargs)

    return call


# Worst cases: one encoder, and decoders of one expert each that have none in common.


def small_world(targets, *, slots, costs, patience=PATIENCE, pinned=(), policy=None):
    masks = {("encoder", "x"): ((0,),), **{("decoder", code): ((n,),) for n, code in enumerate(targets)}}
    residency = Residency(masks, {"encoder": (1,), "decoder": (slots,)}, pinned=[("decoder", code) for code in pinned])
    scheduler = Scheduler(residency, patience=patience) if policy is None else policy(residency)
    return scheduler, SimulatedRunner(costs, masks)


def flood(rare, hot, *, each, until, tokens, at):
    """`hot` come all the time by turns, `rare` once."""
    times = np.arange(0.0, until, each).round(4).tolist()
    arrived = [Arrived(time, "x", hot[n % len(hot)], tokens) for n, time in enumerate(times)]
    arrived.append(Arrived(at, "x", rare, tokens))
    return sorted(arrived, key=lambda one: one.seconds)


def wait_of(done, target):
    return next(
        joined - each.seconds for each, joined in zip(done.trace, done.joined, strict=True) if each.target == target
    )


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("rows", [3, 128])
@pytest.mark.parametrize("hot", ["a", "ab", "abc"])
def test_a_rare_language_comes_through_a_flood(hot, rows, slots):
    """Also where all that are in flight finish at once, and each of the others alone would leave it room."""
    costs = Costs(step=0.03, row=0.0, encoding=0.0, token=0.0, rows=rows)
    scheduler, runner = small_world("abcz", slots=slots, costs=costs)
    arrivals = flood("z", hot, each=0.05, until=30.0, tokens=10, at=1.0)
    done = replay(arrivals, scheduler, runner)
    number = next(n for n, each in enumerate(done.trace) if each.target == "z")
    assert wait_of(done, "z") <= bounds(done, costs)[number]
    assert wait_of(done, "z") < 12.0  # and not only when the flood is over


@pytest.mark.parametrize("rows", [3, 128])
def test_those_that_would_leave_room_one_by_one_do_not_take_it_together(rows):
    """All in flight finish at once; then each of the others would fit beside the one that is overdue, but not all."""
    costs = Costs(step=0.03, row=0.0, encoding=0.0, token=0.0, rows=rows)
    scheduler, runner = small_world("abcz", slots=3, costs=costs)
    times = [0.0, 0.5, 1.0, *(1.5 + 0.29 * np.arange(60)).round(4).tolist()]  # 0.3 s of steps: never a pause
    arrivals = [Arrived(time, "x", code, 10) for time in times for code in "abc"]
    arrivals = sorted([*arrivals, Arrived(1.6, "x", "z", 10)], key=lambda each: each.seconds)
    assert PATIENCE <= wait_of(replay(arrivals, scheduler, runner), "z") < 4.0


def test_what_waits_for_a_row_does_not_lose_its_experts_to_who_came_later():
    """Otherwise both would be brought in by turns, for as long as there is no row for either."""
    masks = {("encoder", "a"): ((0,),), ("encoder", "b"): ((1,),), ("decoder", "z"): ((0,),)}
    scheduler = Scheduler(Residency(masks, {"encoder": (1,), "decoder": (1,)}), patience=0.5)
    arrivals = [Arrived(0.0, "a", "z", 150)] * 4 + [Arrived(0.2, "a", "z", 5), Arrived(0.3, "b", "z", 5)]
    assert replay(arrivals, scheduler, SimulatedRunner(Costs(rows=4), masks)).swaps == 2


def test_a_pinned_language_never_leaves():
    costs = Costs()
    scheduler, runner = small_world("abcd", slots=2, costs=costs, pinned="a")
    arrivals = [Arrived(0.1 * n, "x", "abcd"[n % 4], 5) for n in range(80)]
    done = replay(arrivals, scheduler, runner)
    assert scheduler.residency.resident(("decoder", "a"))
    assert done.moved - done.swaps == 1  # the encoder's came along with the first


def test_a_language_that_needs_all_slots_comes_through():
    """Its experts fit beside no others'; all others would always find room beside each other."""
    masks = {("encoder", "x"): ((0,),), ("decoder", "z"): ((0, 1, 2),)}
    masks |= {("decoder", code): ((3 + n,),) for n, code in enumerate("abc")}
    costs = Costs(row=0.0, encoding=0.0, token=0.0)
    scheduler = Scheduler(Residency(masks, {"encoder": (1,), "decoder": (3,)}), patience=PATIENCE)
    arrivals = flood("z", "abc", each=0.05, until=30.0, tokens=10, at=1.0)
    done = replay(arrivals, scheduler, SimulatedRunner(costs, masks))
    assert PATIENCE <= wait_of(done, "z") < 12.0


def test_overload_does_not_undo_grouping():
    """When all wait longer than patience, to go by age alone would take a swap for nearly each sentence."""
    ours, theirs = (replayed("skewed", "24GB", policy, 20.0, 250) for policy in ("ours", "first come"))
    assert ours.swaps < 0.8 * theirs.swaps
    assert max(ours.finished) < 0.7 * max(theirs.finished)
