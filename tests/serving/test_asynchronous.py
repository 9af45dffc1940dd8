"""Calls from an event loop never hold it up, and one that is cancelled leaves no work behind."""

import asyncio
import gc
import math
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest

from nllb_prune import Translator, UsageError
from nllb_prune.errors import Unavailable
from nllb_prune.serving import texts as preparing
from nllb_prune.serving.http.backend import Ask, LocalBackend
from nllb_prune.serving.texts import Texts
from tests.serving.asking import ENG_DEU, dropped, same, wait_for

SHORT = [f"wake me up at {number}" for number in range(2000)]
LONG = " ".join(f"Wake me up at {number}." for number in range(3000))


class Slow:
    """A tokenizer that takes a while, and counts the texts that it encodes."""

    def __init__(self, tokenizer, *, encoding=0.0, decoding=0.0):
        self.tokenizer, self.encoding, self.decoding = tokenizer, encoding, decoding
        self.encoded = 0

    def __call__(self, texts, **named):
        self.encoded += len(texts)
        time.sleep(self.encoding)
        return self.tokenizer(texts, **named)

    def batch_decode(self, tokens, **named):
        time.sleep(self.decoding)
        return self.tokenizer.batch_decode(tokens, **named)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture
def translator(masks):
    with Translator("mini", masks) as translator:
        yield translator


@pytest.fixture
def slow(translator, monkeypatch):
    """(encoding, decoding) -> a tokenizer that takes so many seconds."""

    def put(**seconds):
        found = Slow(translator._opened.tokenizer, **seconds)
        monkeypatch.setattr(translator._texts, "_tokenizer", found)
        return found

    return put


@pytest.fixture
def cuts(monkeypatch):
    """What is cut, .02 seconds a text; with `held` not set, the first that begins with "hold" waits for it."""

    class Cuts(list):
        held = threading.Event()

        def cut(self, text, code):
            self.append(text)
            if text.startswith("hold"):
                self.held.wait(20)
            else:
                time.sleep(0.02)
            return real(text, code)

    real, found = preparing.segment, Cuts()
    monkeypatch.setattr(preparing, "segment", found.cut)
    yield found
    found.held.set()


async def cancelled(task, after=0.0, begun=lambda: True):
    """Cancel a task, some seconds after something has begun, and return how long it takes to end."""
    while not (begun() or task.done()):
        await asyncio.sleep(0.01)
    await asyncio.sleep(after)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - start


async def longest_pause(work):
    """Do work, and return what comes of it and for how long the event loop was held up: endlessly, if all the time."""
    pauses = []

    async def tick():
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            pauses.append(time.monotonic() - before)

    ticking = asyncio.ensure_future(tick())
    try:
        found = await work
    finally:
        ticking.cancel()
    return found, max(pauses) if len(pauses) > 2 else math.inf


def prompt(ask, *, pause):
    """Ask and return what comes of it, if the event loop is not held up for as long as `pause`.

    A machine that is busy may hold it up as well, so one of three tries will do.
    """
    for _ in range(3):
        found, longest = asyncio.run(ask())
        if longest < pause:
            return found
    pytest.fail(f"the event loop was held up for {longest:.2f} seconds")


@pytest.fixture
def no_collection():
    """Without collections of garbage, which stop all threads for longer the more a process has loaded."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def consume(stream):
    async def consuming():
        return [part async for part in stream]

    return asyncio.ensure_future(consuming())


WAYS = {
    "translate": lambda translator, texts: asyncio.ensure_future(translator.translate_async(texts, *ENG_DEU)),
    "submit": lambda translator, texts: asyncio.ensure_future(translator.submit_async(texts, *ENG_DEU)),
    "backend": lambda translator, texts: asyncio.ensure_future(
        LocalBackend(translator).translate(
            Ask(texts=tuple(texts), sources=("eng_Latn",) * len(texts), target="deu_Latn")
        )
    ),
}
STREAMS = {
    "stream": lambda translator, text: consume(translator.stream_async(text, *ENG_DEU)),
    "backend": lambda translator, text: consume(
        LocalBackend(translator).stream(Ask(texts=(text,), sources=("eng_Latn",), target="deu_Latn"))
    ),
}


# while texts are prepared


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_is_cancelled_while_texts_are_cut_ends_with_the_text_at_hand(translator, cuts, way):
    async def ask():
        took = await cancelled(WAYS[way](translator, SHORT), begun=lambda: len(cuts) > 1)
        count = len(cuts)
        await asyncio.sleep(0.2)
        return took, count

    took, count = asyncio.run(ask())
    assert took < 10  # all would take 40
    assert 1 < len(cuts) == count < 500
    assert translator.figures().waiting == translator.figures().sentences == 0


@pytest.mark.parametrize(
    ("ways", "way", "texts"), [*((WAYS, way, SHORT) for way in WAYS), *((STREAMS, way, LONG) for way in STREAMS)]
)
def test_a_task_that_is_cancelled_while_sentences_are_encoded_ends_with_the_portion_at_hand(
    translator, slow, ways, way, texts
):
    tokenizer = slow(encoding=0.2)

    async def ask():
        took = await cancelled(ways[way](translator, texts), begun=lambda: tokenizer.encoded)
        encoded = tokenizer.encoded
        await asyncio.sleep(0.4)
        return took, encoded

    took, encoded = asyncio.run(ask())
    assert took < 5  # all would take 6
    assert 0 < tokenizer.encoded == encoded < 1500
    assert translator.figures().waiting == translator.figures().sentences == 0


def test_one_that_is_prepared_or_cancelled_holds_nobody_back(translator, cuts):
    async def ask():
        many = [asyncio.ensure_future(translator.translate_async(SHORT, *ENG_DEU)) for _ in range(3)]
        await asyncio.sleep(0.1)
        [beside] = await asyncio.wait_for(translator.translate_async(["wake me up"], *ENG_DEU), 20)
        await asyncio.gather(*map(cancelled, many))
        [after] = await asyncio.wait_for(translator.translate_async(["wake me up"], *ENG_DEU), 20)
        return beside, after

    beside, after = asyncio.run(ask())
    assert beside.text == after.text == translator.translate(["wake me up"], *ENG_DEU)[0].text


def test_texts_that_no_thread_has_begun_with_are_never_cut(translator, cuts):
    async def ask():
        held = [asyncio.ensure_future(translator.translate_async([f"hold on {n}"], *ENG_DEU)) for n in range(4)]
        while len(cuts) < 4:
            await asyncio.sleep(0.01)
        behind = asyncio.ensure_future(translator.translate_async(["wake me up"], *ENG_DEU))
        took = await cancelled(behind, after=0.05)
        cuts.held.set()
        await asyncio.gather(*held)
        return took

    assert asyncio.run(ask()) < 10  # others are held for 20
    assert "wake me up" not in cuts


def test_a_task_ends_with_its_thread_however_often_it_is_cancelled(translator, cuts):
    async def ask():
        task = asyncio.ensure_future(translator.translate_async(["hold on", "wake me up"], *ENG_DEU))
        while not cuts:
            await asyncio.sleep(0.01)
        for _ in range(5):
            await asyncio.sleep(0.05)
            task.cancel()
        assert not task.done()
        cuts.held.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert cuts == ["hold on"]


def test_what_was_submitted_when_a_task_is_cancelled_is_taken_out(translator, monkeypatch):
    submitted, go_on, start = threading.Event(), threading.Event(), translator._start

    def held(*given, **named):
        found = start(*given, **named)
        submitted.set()
        go_on.wait(20)
        return found

    monkeypatch.setattr(translator, "_start", held)

    async def ask():
        task = asyncio.ensure_future(translator.translate_async(SHORT, *ENG_DEU))
        await asyncio.to_thread(submitted.wait, 20)
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        await cancelled(task)

    asyncio.run(ask())
    dropped(translator)


def test_a_deadline(translator, cuts):
    async def ask():
        async with asyncio.timeout(0.2):
            await translator.translate_async(SHORT, *ENG_DEU)

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert len(cuts) < 500
    assert translator.figures().waiting == 0


def test_what_is_wrong_is_told(translator):
    async def ask():
        return await asyncio.gather(
            translator.submit_async(["wake me up"], "eng_Latn", "fra_Latn"),
            translator.translate_async("wake me up", *ENG_DEU),
            anext(translator.stream_async("wake me up", "fra_Latn", "eng_Latn")),
            return_exceptions=True,
        )

    told = asyncio.run(ask())
    assert [type(each) for each in told] == [UsageError] * 3
    assert ["`target`" in str(told[0]), "`texts`" in str(told[1]), "`source`" in str(told[2])] == [True] * 3


# the event loop


@pytest.mark.parametrize("way", WAYS)
def test_many_texts_do_not_hold_up_the_event_loop(translator, no_collection, way):
    async def ask():
        found, pause = await longest_pause(WAYS[way](translator, SHORT))
        for each in found if way == "submit" else ():
            each.cancel()
        return len(found), pause

    assert prompt(ask, pause=0.25) == len(SHORT)


def test_cancelling_many_texts_does_not_hold_up_the_event_loop(translator, no_collection):
    async def ask():
        steps = translator.figures().steps
        task = asyncio.ensure_future(translator.translate_async(SHORT, *ENG_DEU))
        while translator.figures().steps == steps:
            await asyncio.sleep(0.01)
        found = await longest_pause(cancelled(task, after=0.2))
        wait_for(lambda: translator.figures().waiting == 0, seconds=20)
        return found

    assert prompt(ask, pause=0.25) < 1


@pytest.mark.parametrize("stream", STREAMS)
def test_a_tokenizer_at_work_does_not_hold_up_the_event_loop(translator, slow, no_collection, stream):
    slow(decoding=0.4)

    async def ask():
        calls = (
            translator.translate_async(["wake me up"], *ENG_DEU),
            STREAMS[stream](translator, "Wake me up. Turn off the lights."),
        )
        return await longest_pause(asyncio.gather(*calls))

    [found], parts = prompt(ask, pause=0.3)
    assert found.text
    assert "".join(each for each in parts if isinstance(each, str))


def test_many_texts_in_one_call_are_as_each_alone(translator, requests, alone):
    sentences, sources, targets = (list(each) for each in zip(*requests[:100], strict=True))
    odd = ["Wake me up at nine.\n---\n" * 3, "", "---"]

    async def ask():
        return await translator.translate_async(
            sentences, sources, targets, whole=True
        ), await translator.translate_async(odd * 100, *ENG_DEU)

    found, forms = asyncio.run(ask())
    same(found, alone[:100])
    same(translator.translate(sentences, sources, targets, whole=True), alone[:100])
    line = forms[0].sentences[0][0].text
    assert [each.text for each in forms] == [f"{line}\n---\n" * 3, "", "---"] * 100
    assert [len(each.sentences) for each in forms] == [6, 0, 1] * 100
    assert forms[0].work.source_tokens > forms[1].work.source_tokens == forms[2].work.source_tokens == 0


def test_a_stream_that_is_read_late_is_whole(translator):
    """Sentences that are finished meanwhile come all at once."""
    text = "\n".join(f"Wake me up at {number}.\n---" for number in range(100))

    async def ask():
        [in_flight] = await translator.submit_async([text], *ENG_DEU)
        stream = in_flight.parts_async()
        first = await anext(stream)
        while translator.figures().waiting:
            await asyncio.sleep(0.01)
        return [first, *[part async for part in stream]], await in_flight.result_async()

    parts, whole = asyncio.run(ask())
    assert "".join(parts) == whole.text
    assert len(parts) == 200


# the end


@pytest.mark.parametrize("way", WAYS)
def test_closing_at_once_gives_up_what_is_being_prepared(translator, cuts, way):
    async def ask():
        tasks = [WAYS[way](translator, SHORT) for _ in range(6)]  # more than there are threads
        await asyncio.sleep(0.2)
        start = time.monotonic()
        await asyncio.to_thread(translator.close, drain=False)
        told = await asyncio.gather(*tasks, return_exceptions=True)
        return told, time.monotonic() - start

    told, took = asyncio.run(ask())
    assert [type(each) for each in told] == [Unavailable] * 6
    assert all("must be open" in str(each) for each in told)
    assert took < 20  # all would take 60
    assert len(cuts) < 1000  # of 12,000
    assert translator.figures().waiting == 0


def test_closing_finishes_what_is_being_prepared_and_takes_nothing_else(translator, cuts):
    async def ask():
        task = asyncio.ensure_future(translator.translate_async(["hold on", "wake me up"], *ENG_DEU))
        await asyncio.sleep(0.1)
        closing = asyncio.ensure_future(asyncio.to_thread(translator.close))
        while not (translator._preparing._shutdown or closing.done()):
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="must be open"):
            await translator.translate_async(["wake me up"], *ENG_DEU)
        cuts.held.set()
        await closing
        with pytest.raises(Unavailable, match="must be open"):
            await translator.submit_async(["wake me up"], *ENG_DEU)
        return await task

    assert all(each.text for each in asyncio.run(ask()))


def test_a_closing_that_drains_is_cut_short_by_one_that_does_not(translator, cuts):
    async def ask():
        task = asyncio.ensure_future(translator.translate_async(SHORT, *ENG_DEU))
        await asyncio.sleep(0.1)
        draining = asyncio.ensure_future(asyncio.to_thread(translator.close))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(translator.close, drain=False)
        await draining
        with pytest.raises(Unavailable):
            await task

    start = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - start < 20  # all would take 40


def test_closing_within_the_event_loop(masks):
    async def ask():
        with Translator("mini", masks) as translator:
            task = asyncio.ensure_future(translator.translate_async(["wake me up"] * 50, *ENG_DEU))
            await asyncio.sleep(0)
        return await task

    assert len(asyncio.run(ask())) == 50


# turns in the tokenizer's thread


@pytest.fixture
def turns(tokenizer):
    return Texts(tokenizer, {}, longest=64)


def steps(count, seconds=0.001, taken=None):
    for number in range(count):
        time.sleep(seconds)
        if taken is not None:
            taken.append(number)
        yield
    return count


def test_who_has_little_to_do_is_not_kept_waiting(turns):
    over = threading.Event()

    def until_it_is_over():
        while not over.is_set():
            time.sleep(0.001)
            yield
        return "over"

    much = turns.in_turns(until_it_is_over(), after=[])
    try:
        assert turns.in_turns(steps(3), after=[]).result(20) == 3
    finally:
        over.set()
    assert much.result(20) == "over"


def test_steps_begin_when_all_before_them_is_finished(turns):
    before = [Future() for _ in range(3)]
    result = turns.in_turns(steps(1), after=before)
    for future in reversed(before):
        time.sleep(0.01)
        assert not result.done()
        future.set_result(None)
    assert result.result(5) == 1


@pytest.mark.parametrize("fails", [lambda future: future.cancel(), lambda future: future.set_exception(ValueError())])
def test_steps_begin_when_something_before_them_fails(turns, fails):
    before = [Future() for _ in range(3)]

    def results():
        yield
        return [future.result() for future in before]

    result = turns.in_turns(results(), after=before)
    before[0].set_result(None)
    assert not result.done()
    fails(before[1])
    with pytest.raises((ValueError, CancelledError)):
        result.result(5)


def test_steps_that_nobody_waits_for_are_not_taken(turns):
    taken = []
    result = turns.in_turns(steps(20_000, taken=taken), after=[])
    wait_for(lambda: taken, seconds=20)
    assert result.cancel()
    assert turns.in_turns(steps(1), after=[]).result(20) == 1  # in the same thread: the turn that was cancelled is over
    count = len(taken)
    time.sleep(0.05)
    assert len(taken) == count < 20_000
    assert turns.in_turns(steps(2), after=[]).result(20) == 2


def test_sentences_of_many_threads_come_to_an_end(turns):
    """Whoever finishes what, in whatever order."""
    before = [Future() for _ in range(2000)]
    results = [turns.in_turns(steps(1, 0), after=before[first::50]) for first in range(50)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda future: future.set_result(None), before))
    assert [result.result(5) for result in results] == [1] * 50
