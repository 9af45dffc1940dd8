"""Admission, on servers of changing speed that are simulated on a clock of their own."""

import math
import random
from collections import deque
from dataclasses import dataclass
from statistics import median

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.serving.http.admission import Admission, Admitted, Refused

WAIT, FLOOR, SPEED = 10.0, 2000, 1000.0


class Clock:
    def __init__(self):
        self.seconds = 1e6

    def __call__(self):
        return self.seconds


@dataclass
class Answer:
    came: float
    size: int
    finished: float | None = None
    alone: float = 0.0

    @property
    def waited(self):
        return self.finished - self.came - self.alone


class OneByOne:
    """Works on a request at a time, so many characters a second."""

    floor = 500

    def __init__(self, speed):
        self.speed, self.free = speed, 0.0

    def alone(self, size):
        return size / self.speed(self.free)

    def finished(self, waiting, until):
        """Yield when each of those that wait is finished, up to a time, in order."""
        while waiting:
            start = max(self.free, waiting[0].came)
            end = start + waiting[0].size / self.speed(start)
            if end > until:
                return
            self.free = end
            yield end, waiting.popleft()


class Together:
    """Works on the first requests at the same time, each at the same speed; one alone is not faster."""

    floor = 16 * 260

    def __init__(self, speed, rows=16):
        self.speed, self.rows, self.at, self.left = speed, rows, 0.0, {}

    def alone(self, size):
        return size * self.rows / self.speed(self.at)

    def finished(self, waiting, until):
        while self.at < until:
            step = min(0.05, until - self.at)
            self.at += step
            for answer in [each for each in list(waiting)[: self.rows] if each.came < self.at]:
                left = self.left.pop(id(answer), answer.size) - step * self.speed(self.at) / self.rows
                if left > 0:
                    self.left[id(answer)] = left
                else:
                    waiting.remove(answer)
                    yield self.at, answer


def simulated(server, load, *, until, sizes=(20, 500), seed=0):
    """Let `load(time)` characters come a second, at random; return the requests let in, and the times of others."""
    clock, draw = Clock(), random.Random(seed)
    admission = Admission(WAIT, server.floor, now=lambda: clock.seconds)
    answers, refused, waiting, tokens, now = [], [], deque(), {}, 0.0
    while now < until:
        now += draw.expovariate(load(now) / (sum(sizes) / 2))
        for seconds, answer in server.finished(waiting, now):
            clock.seconds = 1e6 + seconds
            answer.finished, answer.alone = seconds, server.alone(answer.size)
            tokens.pop(id(answer)).done()
        clock.seconds = 1e6 + now
        answer = Answer(now, draw.randint(*sizes))
        found = admission.admit(answer.size)
        if isinstance(found, Admitted):
            answers.append(answer)
            waiting.append(answer)
            tokens[id(answer)] = found
        else:
            assert 1 <= found.retry_after <= 300
            refused.append(now)
        assert admission.outstanding == sum(each.size for each in waiting)
    return [each for each in answers if each.finished is not None], refused


def goodput(answers, start, end):
    return sum(each.size for each in answers if start <= each.finished < end) / (end - start)


def waits(answers, start, end):
    """Return the seconds that those waited who came then, without those for their own work, in order."""
    return sorted(each.waited for each in answers if start <= each.came < end)


@pytest.mark.parametrize("server", [OneByOne, Together])
@pytest.mark.parametrize("seed", range(3))
def test_overload(server, seed):
    answers, refused = simulated(
        server(lambda _: SPEED), lambda now: 5 * SPEED if now < 200 else SPEED / 2, until=400, seed=seed
    )
    assert goodput(answers, 10, 200) > 0.97 * SPEED
    assert waits(answers, 30, 200)[-1] < 1.5 * WAIT
    assert median(each.finished - each.came for each in answers if 30 < each.came < 200) == pytest.approx(WAIT, rel=0.2)
    assert not [seconds for seconds in refused if seconds > 200 + WAIT / 2]


def test_below_capacity_nothing_is_refused():
    _, refused = simulated(OneByOne(lambda _: SPEED), lambda _: 0.7 * SPEED, until=500)
    assert not refused


@pytest.mark.parametrize("server", [OneByOne, Together])
def test_a_slow_start(server):
    answers, _ = simulated(server(lambda now: SPEED / 20 if now < 30 else SPEED), lambda _: 5 * SPEED, until=200)
    assert waits(answers, 60, 180)[-1] < 1.5 * WAIT
    assert goodput(answers, 60, 200) > 0.95 * SPEED


@pytest.mark.parametrize("server", [OneByOne, Together])
def test_speed_drops_to_a_tenth_and_comes_back(server):
    slow = range(100, 400)
    answers, refused = simulated(
        server(lambda now: SPEED / 10 if int(now) in slow else SPEED),
        lambda now: 3 * SPEED if now < 500 else SPEED / 2,
        until=600,
    )
    assert waits(answers, 100, 400)[-1] < 11 * WAIT
    assert waits(answers, 150, 300)[-1] < 1.2 * server.floor / (SPEED / 10) + WAIT
    assert goodput(answers, 110, 400) > 0.8 * SPEED / 10
    assert goodput(answers, 430, 500) > 0.9 * SPEED
    assert not [seconds for seconds in refused if seconds > 500 + WAIT]


def test_bursts_of_tiny_requests_after_idle_times():
    answers, refused = simulated(
        Together(lambda _: SPEED), lambda now: 20 if now % 60 < 30 else 3 * SPEED, until=180, sizes=(5, 25)
    )
    assert waits(answers, 30, 180)[-1] < 2 * WAIT
    assert goodput(answers, 90, 120) > 0.9 * SPEED
    assert not [seconds for seconds in refused if WAIT < seconds % 60 < 30]


def test_lists_as_long_as_all_that_may_wait():
    answers, _ = simulated(OneByOne(lambda _: SPEED), lambda _: 5 * SPEED, until=600, sizes=(5000, 15000))
    assert goodput(answers, 30, 600) > 0.9 * SPEED
    assert waits(answers, 60, 500)[-1] < 4 * WAIT


def admission_of(**options):
    clock = Clock()
    return Admission(WAIT, FLOOR, now=clock, **options), clock


def test_an_unmeasured_server_takes_work_up_to_the_floor():
    admission, clock = admission_of()
    first = admission.admit(10 * FLOOR)
    assert isinstance(first, Admitted)
    clock.seconds += 5
    found = admission.admit(1)
    assert isinstance(found, Refused)
    assert math.isfinite(found.retry_after)
    assert (admission.outstanding, admission.rate, admission.expected_wait) == (10 * FLOOR, 0, WAIT)
    first.done()
    assert admission.rate == pytest.approx(2 * FLOOR, rel=0.3)
    assert admission.expected_wait == 0


def test_the_rate_is_that_of_the_time_with_work():
    admission, clock = admission_of()
    for _ in range(20):
        with admission.admit(100):
            clock.seconds += 2
        clock.seconds += 1000
    assert admission.rate == pytest.approx(50, rel=0.15)


def test_an_answer_at_once_opens_no_gates():
    admission, clock = admission_of()
    admission.admit(1000).done()
    assert admission.rate == 1000
    admission.admit(3 * WAIT * 1000)
    assert isinstance(admission.admit(1), Refused)
    assert clock.seconds == 1e6


def test_what_is_given_up_leaves_and_counts_for_nothing():
    admission, clock = admission_of()
    admitted = admission.admit(100)
    clock.seconds += 1
    with pytest.raises(KeyError), admitted:
        raise KeyError
    admission.admit(50).given_up()
    assert (admission.outstanding, admission.rate) == (0, 0)


def test_only_the_first_word_counts():
    admission, clock = admission_of()
    with admission.admit(100) as admitted:
        clock.seconds += 1
        admitted.done()
        admitted.given_up()
    assert admission.outstanding == 0
    assert admission.rate == pytest.approx(100)
    other = admission.admit(100)
    other.given_up()
    other.done()
    assert admission.rate == pytest.approx(100)


def test_a_server_that_stands_still_says_so_within_reason():
    admission, clock = admission_of()
    with admission.admit(100):
        clock.seconds += 1
    admission.admit(10 * FLOOR)
    for _ in range(10):
        clock.seconds += 100
        assert admission.admit(1).retry_after == 300 - WAIT / 2
    assert admission.expected_wait == 300


@pytest.mark.parametrize("wrong", [{"longest_wait": 0}, {"floor": 0}, {"memory": 0}, {"longest_wait": math.inf}])
def test_wrong_numbers(wrong):
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}` must be more than 0"):
        Admission(**({"longest_wait": 1.0, "floor": 1} | wrong))


def test_a_wrong_size():
    with pytest.raises(UsageError, match="`size` must be 0 or more, but is -1"):
        Admission(1, 1).admit(-1)
