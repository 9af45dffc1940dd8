import asyncio
from time import monotonic

import pytest

from nllb_prune.serving.http.deadlines import Deadlines
from nllb_prune.serving.http.problems import Problem, late


def refused(work):
    with pytest.raises(Problem) as problem:
        asyncio.run(work())
    return problem.value


def test_what_is_in_time():
    async def work():
        async with Deadlines(5, late).of(monotonic()):
            return 3

    assert asyncio.run(work()) == 3


def test_what_is_late():
    async def work():
        async with Deadlines(0.02, late).of(monotonic()):
            await asyncio.sleep(60)

    assert refused(work).message == "The translation was not finished within 0.02 seconds; send less text"


def test_what_was_late_before_it_began():
    async def work():
        async with Deadlines(1, late).of(monotonic() - 2):
            await asyncio.sleep(60)

    assert refused(work).status == 503


@pytest.mark.parametrize("before", [True, False])
def test_the_end_is_for_all(before):
    async def work():
        deadlines = Deadlines(60, late)
        if before:
            deadlines.end_in(0.02)
        async with deadlines.of(monotonic()):
            deadlines.end_in(0.02)
            await asyncio.sleep(60)

    assert refused(work).message == "The server is closing; try again later"


def test_errors_are_left_alone():
    async def work():
        async with Deadlines(5, late).of(monotonic()):
            raise Problem(400, "wrong")

    assert refused(work).message == "wrong"
