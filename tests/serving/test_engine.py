"""The engine over a runner without a model: what joins has its experts, nothing is lost, failures stay apart."""

from collections import Counter

import pytest

from nllb_prune.serving.engine import Engine, Outcome
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Residency
from nllb_prune.serving.scheduler import Scheduler

LANGUAGES = "abcdef"
MASKS = {(stack, code): ((2 * n, 2 * n + 1),) for stack in ("encoder", "decoder") for n, code in enumerate(LANGUAGES)}


class Runner:
    """Takes a second a turn; a swap takes two, a sentence three steps."""

    def __init__(self, residency, *, rows=4):
        self.residency, self.rows = residency, rows
        self.time, self.left, self.joins, self.ready, self.broken = 0.0, {}, [], None, set()

    def now(self):
        return self.time

    def choose(self, jobs):
        return [job for job, _ in zip(jobs, range(self.rows - len(self.left)), strict=False)]

    def join(self, jobs):
        assert len(self.left) + len(jobs) <= self.rows
        for job in jobs:
            assert all(map(self.residency.resident, job.sides))
            self.joins.append((job.key, self.time - job.arrived))
            self.left[job.key] = (job, 3)
        return []

    def step(self):
        self.time += 1
        assert all(self.residency.resident(side) for job, _ in self.left.values() for side in job.staying)
        self.left = {key: (job, steps - 1) for key, (job, steps) in self.left.items()}
        done = [job for job, steps in self.left.values() if not steps]
        for job in done:
            del self.left[job.key]
        return [Outcome(job, job.key) for job in done]

    def drop(self, job):
        del self.left[job.key]

    def begin(self, swap):
        self.ready = (self.time + 2, swap)

    def ended(self, *, wait):
        end, swap = self.ready
        self.time = max(self.time, end) if wait else self.time
        if self.time < end:
            return None
        came = [move for move in swap.moves if (move.stack, move.expert) not in self.broken]
        return Arrival(tuple(came), None if len(came) == len(swap.moves) else OSError("broken"))


def made(*, slots=4, patience=20.0, pinned=(), **runner):
    residency = Residency(MASKS, {"encoder": [slots], "decoder": [slots]}, pinned=pinned)
    made_runner = Runner(residency, **runner)
    return Engine(Scheduler(residency, patience=patience), made_runner), made_runner


def job(key, source, target, arrived=0.0):
    return Job(key=key, joining=(("encoder", source),), staying=(("decoder", target),), arrived=arrived)


def finish(engine, *, turns=10_000):
    outcomes = []
    for _ in range(turns):
        if engine.idle:
            return outcomes
        outcomes += engine.turn()
    raise AssertionError("the engine came to no end")


def test_every_sentence_comes_out_once():
    engine, runner = made()
    for key in range(300):
        engine.add(job(key, LANGUAGES[key * 7 % 6], LANGUAGES[key * 5 % 6]))
    outcomes = finish(engine)
    assert Counter(outcome.result for outcome in outcomes) == Counter(range(300))
    assert len(runner.joins) == 300
    assert engine.swaps < 150


def test_sentences_of_a_group_join_in_their_order():
    engine, runner = made()
    for key in range(40):
        engine.add(job(key, "a", "b"))
    finish(engine)
    assert [key for key, _ in runner.joins] == list(range(40))
    assert engine.swaps == 1


def test_a_rare_language_comes_through_a_flood():
    engine, runner = made(slots=2)
    engine.add(job(0, "c", "d"))
    key = 1
    while not any(key == 0 for key, _ in runner.joins):
        while len(engine.scheduler) < 8:
            engine.add(job(key, "a", "b", arrived=runner.time))
            key += 1
        engine.turn()
        assert runner.time < 40
    assert dict(runner.joins)[0] <= 20 + 3 + 2 + 1  # patience, the sentences in flight, the copy, a turn


def test_swaps_go_on_beside_steps():
    engine, runner = made(slots=4)
    engine.add(job(0, "a", "b"))
    engine.turn()
    engine.turn()
    engine.add(job(1, "c", "d", arrived=runner.time))
    engine.turn()
    assert engine.running == 1
    assert engine.scheduler.coming is not None  # there is room for both
    finish(engine)
    assert dict(runner.joins)[1] <= 3


def test_pinned_sides_stay():
    pinned = [("encoder", "a"), ("decoder", "a")]
    engine, runner = made(slots=4, pinned=pinned)
    for key, code in enumerate("abcdef" * 3):
        engine.add(job(key, "a", code))
    finish(engine)
    assert runner.residency.resident(("encoder", "a"))


def test_a_failed_swap_fails_those_who_wait_for_what_did_not_come():
    engine, runner = made()
    runner.broken = {("decoder", 2)}  # of b
    for key, (source, target) in enumerate(["ab", "ac", "bc", "cb"]):
        engine.add(job(key, source, target))
    outcomes = {outcome.job.key: outcome.error for outcome in finish(engine)}
    assert {key for key, error in outcomes.items() if error is not None} == {0, 3}
    runner.broken = set()
    engine.add(job(9, "a", "b"))
    assert [outcome.error for outcome in finish(engine)] == [None]


def test_dropped_sentences_are_gone():
    engine, runner = made()
    for key in range(8):
        engine.add(job(key, "a", "b"))
    for _ in range(3):
        engine.turn()
    running = set(runner.left)
    assert running
    waiting = set(range(8)) - {key for key, _ in runner.joins}
    dropped = {min(running), max(waiting)}
    for key in [*dropped, 77]:
        engine.cancel(key)
    outcomes = {outcome.job.key for outcome in finish(engine)}
    assert not outcomes & dropped
    assert engine.idle
    assert not runner.left


@pytest.mark.parametrize("slots", [2, 3, 5, 12])
@pytest.mark.parametrize("patience", [0.0, 1.0, 1000.0])
def test_any_slots_and_patience_come_to_an_end(slots, patience):
    engine, runner = made(slots=slots, patience=patience)
    keys = iter(range(10_000))
    done = 0
    for burst in range(30):
        for n in range(5):
            engine.add(job(next(keys), LANGUAGES[burst * n % 6], LANGUAGES[(burst + n) % 6], arrived=runner.time))
        for _ in range(4):
            done += len(engine.turn())
    assert done + len(finish(engine)) == 150


def test_overload_does_not_take_a_swap_for_each_sentence():
    """Everything comes at once and is overdue at once: groups still come together."""
    engine, _ = made(slots=2, patience=0.0, rows=8)
    for key in range(240):
        engine.add(job(key, LANGUAGES[key % 6], LANGUAGES[key // 6 % 6]))
    finish(engine)
    assert engine.swaps <= 80  # of 36 groups
