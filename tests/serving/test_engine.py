"""The engine over a runner without a model: what joins has its experts, nothing is lost, failures stay apart."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.serving.engine import Change, Engine, Outcome
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Residency
from nllb_prune.serving.scheduler import Scheduler

LANGUAGES = "abcdef"
MASKS = {(stack, code): ((2 * n, 2 * n + 1),) for stack in ("encoder", "decoder") for n, code in enumerate(LANGUAGES)}


class Runner:
    """Takes a second a turn; a swap takes two, a sentence three steps."""

    def __init__(self, residency, *, rows=4):
        self.residency, self.rows = residency, rows  # that of the sides which are served
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
    place = runner_place(made_runner)
    return Engine(Scheduler(residency, patience=patience), made_runner, place=place), made_runner


def runner_place(runner):
    """Sides are those that are served; what has none is refused."""

    def place(job):
        if not {*job.sides} <= {*runner.residency.sides}:
            raise UsageError("it is not served")
        return job

    return place


def job(key, source, target, arrived=0.0):
    return Job(key=key, joining=(("encoder", source),), staying=(("decoder", target),), arrived=arrived)


def change_to(engine, runner, masks, *, slots=4, pinned=(), ahead=()):
    residency = Residency(masks, {"encoder": [slots], "decoder": [slots]}, pinned=pinned)

    def begin():
        assert not runner.left, "nobody is in flight"
        assert runner.ready is None or engine.scheduler.coming is None
        runner.residency = residency

    change = Change(residency=residency, ahead=tuple(ahead), begin=begin)
    engine.change(change)
    return change


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
    assert {str(error) for error in outcomes.values() if isinstance(error, Unavailable)} == {"broken"}
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


def test_an_outcome_tells_how_long_a_sentence_waited_and_took():
    engine, runner = made()
    runner.time = 5.0
    engine.add(job(0, "a", "b", arrived=4.0))
    [outcome] = finish(engine)
    assert (outcome.waited, outcome.translating) == (1.0 + 2.0, 3.0)  # a swap, and three steps
    runner.broken = {("decoder", 4)}
    engine.add(job(1, "a", "c", arrived=runner.time))
    [outcome] = finish(engine)
    assert (outcome.waited, outcome.translating) == (2.0, 0.0)


# other sides

OTHERS = {(stack, code): ((2 * n + 1, 2 * n + 2),) for stack, code in MASKS for n in ["bcdefa".index(code)]}
"""Each shares an expert with two of the old ones."""


def test_who_is_in_flight_finishes_within_the_old_sides_and_who_waits_does_not_join_before():
    engine, runner = made(slots=12)
    for key in range(4):
        engine.add(job(key, "a", "b"))
    while engine.running < 4:
        engine.turn()
    for key in range(4, 8):
        engine.add(job(key, "a", "b", arrived=runner.time))
    old = runner.residency
    change = change_to(engine, runner, OTHERS, slots=12)
    while len(runner.joins) == 4:
        assert (runner.residency is old) == (not change.done.done())
        engine.turn()
    assert change.done.done()
    assert len(finish(engine)) == 4
    assert engine.idle


def test_what_is_in_its_slot_stays_there():
    engine, runner = made(slots=12)
    engine.add(job(0, "a", "b"))
    finish(engine)
    before = runner.residency.experts("decoder", 0)
    change_to(engine, runner, OTHERS, slots=12)
    engine.add(job(1, "b", "c"))  # 1 and 2 of the encoder, 3 and 4 of the decoder
    moved = engine.moved
    finish(engine)
    assert engine.moved == moved + 2
    after = runner.residency.experts("decoder", 0)
    assert before.items() <= after.items()


def test_sentences_that_are_not_served_any_more_are_told():
    engine, runner = made()
    for key, (source, target) in enumerate(["ab", "ac", "bf", "cb"]):
        engine.add(job(key, source, target))
    left = {side: mask for side, mask in MASKS.items() if side[1] != "c"}
    change_to(engine, runner, left)
    outcomes = {outcome.job.key: outcome for outcome in finish(engine)}
    assert {key for key, outcome in outcomes.items() if outcome.error is not None} == {1, 3}
    assert "not served" in str(outcomes[1].error)
    engine.add(job(9, "c", "a", arrived=runner.time))  # one that was on its way
    [outcome] = finish(engine)
    assert "not served" in str(outcome.error)


def test_what_is_to_be_in_comes_when_nobody_waits_for_others():
    engine, runner = made(slots=12)
    engine.add(job(0, "a", "b"))
    change_to(engine, runner, OTHERS, slots=12, ahead=sorted(OTHERS))
    while not runner.joins:
        engine.turn()
    assert not all(map(runner.residency.resident, OTHERS))
    finish(engine)
    assert all(map(runner.residency.resident, OTHERS))


def test_what_cannot_be_brought_in_ahead_comes_when_it_is_wanted():
    engine, runner = made(slots=12)
    runner.broken = {("decoder", 5)}
    change_to(engine, runner, MASKS, slots=12, ahead=sorted(MASKS))
    assert finish(engine) == []
    absent = {side for side in MASKS if not runner.residency.resident(side)}
    assert absent == {("decoder", "c")}
    runner.broken = set()
    engine.add(job(0, "a", "c"))
    assert [outcome.error for outcome in finish(engine)] == [None]


def test_finishing_brings_nothing_in_ahead():
    engine, runner = made(slots=12)
    change_to(engine, runner, MASKS, slots=12, ahead=sorted(MASKS))
    engine.turn()
    engine.finish()
    finish(engine)
    assert not any(map(runner.residency.resident, MASKS))


def test_a_change_that_is_called_off_changes_nothing():
    engine, runner = made()
    old = runner.residency
    engine.add(job(0, "a", "b"))
    assert change_to(engine, runner, OTHERS).done.cancel()
    finish(engine)
    assert engine.scheduler.residency is runner.residency is old


code = st.sampled_from(LANGUAGES)
some_masks = st.fixed_dictionaries(
    {side: st.lists(st.integers(0, 11), min_size=1, max_size=2, unique=True).map(sorted) for side in MASKS}
).map(lambda drawn: {side: (tuple(ids),) for side, ids in drawn.items()})
changes = st.tuples(some_masks, st.sets(code, min_size=2), code, st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 6), st.lists(st.one_of(st.integers(1, 4), st.tuples(code, code), changes), max_size=30))
def test_any_sequence_of_sentences_and_changes(slots, events):
    """Each sentence comes out once, with its experts in slots all the while; it fails only if it is not served."""
    engine, runner = made(slots=slots)
    count, outcomes, served = 0, [], set(LANGUAGES)
    ever_lost = False
    for event in events:
        match event:
            case int():
                for _ in range(event):
                    outcomes += engine.turn()
            case (source, target):
                engine.add(job(count, source, target, arrived=runner.time))
                count += 1
            case (masks, codes, pinned, called_off):
                served = codes | {pinned}
                left = {side: mask for side, mask in masks.items() if side[1] in served}
                fixed = [(stack, pinned) for stack in ("encoder", "decoder")]
                try:
                    change = change_to(engine, runner, left, slots=slots, pinned=fixed, ahead=fixed)
                except UsageError:  # no room beside what is pinned
                    continue
                if called_off:
                    change.done.cancel()
                ever_lost |= served != set(LANGUAGES)
    outcomes += finish(engine)
    assert Counter(outcome.job.key for outcome in outcomes) == Counter(range(count))
    assert ever_lost or all(outcome.error is None for outcome in outcomes)
    assert all(isinstance(outcome.error, UsageError | None) for outcome in outcomes)
    assert not runner.left
