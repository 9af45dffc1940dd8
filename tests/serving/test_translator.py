"""A translator's answers are those of a model alone, whoever shares the batch and whatever swaps; errors stay apart."""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nllb_prune import Translator, UsageError
from nllb_prune.errors import Unavailable
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.generation.search import SearchSettings
from nllb_prune.serving.texts import Work
from tests.serving.asking import ENG_DEU, NEAR_TIE, answers, dropped, least_memory, same, wait_for

BEAM = SearchSettings(beams=3, alternatives=2)


@pytest.fixture(scope="module")
def resident(masks):
    with Translator("mini", masks) as translator:
        yield translator


@pytest.fixture(scope="module")
def small(masks):
    return least_memory(masks, longest=64, beams=3)


@pytest.fixture
def paged(masks, small):
    with Translator("mini", masks, memory=small, longest=64, beams=3) as translator:
        yield translator


# equality


def test_mixed_batches_give_what_each_sentence_gives_alone(resident, requests, alone):
    same(answers(resident, requests), alone)
    figures = resident.figures()
    assert figures.swaps == 0
    assert figures.waiting == figures.in_flight == 0
    assert len(figures.resident) == 20


def test_beam_search_and_alternatives(resident, requests, offline):
    found = answers(resident, requests[:40], search=BEAM)
    expected = offline(requests[:40], search=BEAM)
    same(found, expected)
    for ours, theirs in zip(found, expected, strict=True):
        if ours.text == theirs[0].text and theirs[1].score < theirs[0].score - NEAR_TIE:
            assert ours.alternatives in ((theirs[1].text,), ())
            assert len(ours.sentences[0]) == 2


def test_the_least_memory_swaps_on_every_batch_and_changes_nothing(paged, requests, alone, small):
    assert paged.plan.paged
    assert paged.plan.total <= small
    same(answers(paged, requests), alone)
    figures = paged.figures()
    assert figures.swaps > 100
    assert figures.working_peak <= paged.plan.working
    assert len(figures.resident) < 20


def test_memory_between_the_least_and_all(masks, small, resident, requests, alone):
    whole = resident.plan.fixed + resident.plan.experts
    with Translator("mini", masks, memory=(small + whole) // 2 + 10_000_000, longest=64, beams=3) as translator:
        assert translator.plan.paged
        same(answers(translator, requests[:120]), alone[:120])
        assert translator.figures().swaps > 0


def test_memory_that_is_enough_holds_all_experts(masks, requests, alone):
    with Translator("mini", masks, memory="200MB") as translator:
        assert not translator.plan.paged
        assert translator.plan.total == 200_000_000
        same(answers(translator, requests[:60]), alone[:60])


def test_pinned_languages_stay(masks, requests, alone):
    least = least_memory(masks, longest=64, beams=3, pinned=["eng_Latn"])
    with Translator("mini", masks, memory=least, longest=64, beams=3, pinned=["eng_Latn"]) as translator:
        same(answers(translator, requests[:80]), alone[:80])
        assert {"encoder.eng_Latn", "decoder.eng_Latn"} <= set(translator.figures().resident)


def test_all_experts_without_masks(model, tokenizer, requests):
    from nllb_prune.generation.translate import translate

    with Translator("mini") as translator:
        found = answers(translator, requests[:30])
    for (sentence, source, target), ours in zip(requests[:30], found, strict=True):
        assert ours.text == translate(model, tokenizer, [sentence], source=source, target=target)[0]


def test_a_dense_model():
    with Translator("mini-dense", memory="100MB") as translator:
        assert translator.plan.experts == 0
        assert translator.translate(["wake me up at nine"], *ENG_DEU)[0].text


@pytest.mark.parametrize("scheme", [None, "int8"])
def test_a_pruned_checkpoint_with_its_own_masks(masks, tmp_path, requests, alone, scheme):
    languages = ("eng_Latn", "deu_Latn", "spa_Latn")
    directions = [(a, b) for a in languages for b in languages if a != b]
    settings = ExportSettings(experts=scheme)
    export("mini", tmp_path / "union", masks=masks, directions=directions, settings=settings)
    mine = [n for n, (_, source, target) in enumerate(requests) if {source, target} <= set(languages)]
    with Translator(tmp_path / "union") as whole:
        found = answers(whole, [requests[n] for n in mine])
        assert set(whole.directions) == set(directions)
    least = least_memory(None, tmp_path / "union", longest=64, beams=1)
    with Translator(tmp_path / "union", memory=least, longest=64, beams=1) as swapping:
        assert swapping.plan.paged
        again = answers(swapping, [requests[n] for n in mine])
    assert [each.text for each in again] == [each.text for each in found]
    if scheme is None:
        same(found, [alone[n] for n in mine])


# texts


def test_a_text_keeps_its_form(resident):
    text = "  Wake me up at nine.\n\n\tTurn off the lights.  \n---\n"
    [found] = resident.translate([text], *ENG_DEU)
    assert len(found.sentences) == 3
    first, second, third = (each[0].text for each in found.sentences)
    assert third == "---"
    assert found.text == f"  {first}\n\n\t{second}  \n---\n"


@pytest.mark.parametrize("text", ["", "   ", "\n", "…", "😀 !!", "---\n***"])
def test_a_text_without_a_word_comes_back(resident, text):
    [found] = resident.translate([text], *ENG_DEU)
    assert found.text == text


@pytest.mark.parametrize("text", ["wake \ud800 me", "a\x00b c", "\u202ewake me up\u202c", "日本 wake كتب", "x" * 3000])
def test_odd_texts_are_answered(resident, text):
    assert len(resident.translate([text], *ENG_DEU)) == 1


def test_no_texts(resident):
    assert resident.translate([], *ENG_DEU) == []


def test_streamed_parts_are_the_translation(resident):
    text = "Wake me up at nine.\nTurn off the lights. What is the weather?\n"
    parts = list(resident.stream(text, *ENG_DEU))
    assert len(parts) > 3
    assert "".join(parts) == resident.translate([text], *ENG_DEU)[0].text


def test_a_stream_that_is_left_drops_its_sentences(resident):
    text = "\n".join(["Wake me up at nine in the morning every day of the week."] * 400)
    stream = resident.stream(text, *ENG_DEU)
    next(stream)
    stream.close()
    dropped(resident)


def test_long_sentences_are_cut_not_lost(masks):
    text = ", ".join(["wake me up at nine"] * 40)
    with Translator("mini", masks, longest=32) as translator:
        [found] = translator.translate([text], *ENG_DEU)
    assert len(found.sentences) > 6
    assert all(sentence[0].text for sentence in found.sentences)


def test_many_names_of_a_language(resident):
    [code] = resident.translate(["wake me up"], "eng_Latn", "zho_Hans")
    [short] = resident.translate(["wake me up"], "en", "zh")
    assert code == short


# asynchronous


def test_asynchronous_calls_share_batches(resident, requests, alone):
    async def ask():
        calls = (resident.translate_async([s], a, b, whole=True) for s, a, b in requests[:60])
        return [found for [found] in await asyncio.gather(*calls)]

    same(asyncio.run(ask()), alone[:60])


def test_a_cancelled_task_cancels_its_sentences(resident):
    async def ask():
        steps = resident.figures().steps
        task = asyncio.ensure_future(resident.translate_async(["wake me up at nine"] * 2000, *ENG_DEU))
        while resident.figures().steps == steps:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    dropped(resident)
    assert resident.translate(["wake me up"], *ENG_DEU)[0].text


def test_a_cancelled_task_leaves_nothing_behind_whenever_it_is_cancelled(resident):
    text = "\n".join(["Wake me up at nine in the morning."] * 1000)

    async def ask(delay):
        task = asyncio.ensure_future(resident.translate_async([text], *ENG_DEU))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for delay in (0, 0.001, 0.01, 0.05):
        asyncio.run(ask(delay))
        dropped(resident)


def test_a_cancelled_stream_ends_as_cancelled(resident):
    text = "\n".join(["Wake me up at nine in the morning."] * 2000)

    async def consume():
        async for _ in resident.stream_async(text, *ENG_DEU):
            pass

    async def ask():
        steps = resident.figures().steps
        task = asyncio.ensure_future(consume())
        while resident.figures().steps == steps:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    dropped(resident)


def test_an_asynchronous_stream_that_is_left_drops_its_sentences(resident):
    text = "\n".join(["Wake me up at nine in the morning every day of the week."] * 400)

    async def ask():
        stream = resident.stream_async(text, *ENG_DEU)
        assert await anext(stream)
        await stream.aclose()

    asyncio.run(ask())
    dropped(resident)


def test_asynchronous_stream(resident):
    text = "Wake me up at nine.\nTurn off the lights."

    async def ask():
        return [part async for part in resident.stream_async(text, *ENG_DEU)]

    assert "".join(asyncio.run(ask())) == resident.translate([text], *ENG_DEU)[0].text


# what is told


def test_work_and_figures(masks, tokenizer):
    text = "Wake me up at nine.\n---\nTurn off the lights."
    with Translator("mini", masks) as translator:
        start = time.monotonic()
        [found] = translator.translate([text], *ENG_DEU)
        took = time.monotonic() - start
        figures = translator.figures()
    first, _, second = (sentence[0].text for sentence in found.sentences)
    length = [len(tokenizer(each, add_special_tokens=False).input_ids) for each in text.split("\n---\n")]
    assert found.work.source_tokens == figures.source_tokens == sum(length) + 4
    assert found.work.target_tokens == figures.target_tokens
    assert 2 <= figures.target_tokens <= 2 + 2 * len(first + second)
    assert found.work.waited > 0
    assert found.work.translating > 0
    assert found.work.waited + found.work.translating < took  # both joined at once
    assert figures.rows >= figures.target_tokens - 2  # the first token comes when a sentence joins
    assert figures.rows / 2 <= figures.steps <= figures.rows


def test_a_text_without_a_word_is_no_work(resident):
    [found] = resident.translate(["---"], *ENG_DEU)
    assert found.work == Work()


def test_a_sentence_that_waits_for_others_tells_so(masks, monkeypatch):
    with Translator("mini", masks, rows=1) as translator:
        monkeypatch.setattr(translator._opened.runner, "now", itertools.count().__next__)  # arrivals are one apart
        texts = translator.translate(["wake me up at nine"] * 6, *ENG_DEU)
    works = [each.work for each in texts]
    for before, after in itertools.pairwise(works):
        assert after.waited >= before.waited + before.translating


def test_the_sides(masks, resident, paged):
    sides = resident.sides()
    assert len(sides) == 20
    assert all(each.resident for each in sides)
    [german] = [each for each in sides if (each.stack, each.key) == ("decoder", "deu_Latn")]
    assert german.mask == masks.masks["decoder"]["deu_Latn"]
    assert (german.experts_of_layer, german.layers) == (64, resident.spec.stack("decoder").layers)
    assert german.bytes == sum(map(len, german.mask)) * 4 * resident.spec.parameters.expert["decoder"]
    assert [each.key for each in resident.sides_of("en", "de")] == list(ENG_DEU)
    assert resident.sides_of(*ENG_DEU)[1] == german
    assert not any(each.resident for each in paged.sides())
    paged.translate(["wake me up"], *ENG_DEU)
    assert all(each.resident for each in paged.sides_of(*ENG_DEU))
    assert not all(each.resident for each in paged.sides())
    with pytest.raises(UsageError, match="`target` must be one of"):
        resident.sides_of("eng_Latn", "fra_Latn")


def test_the_names_of_things(masks, resident):
    assert (resident.name, resident.beams, resident.open) == ("mini", 4, True)
    assert resident.masks == masks
    assert resident.spec.fingerprint.matches(masks.fingerprint)
    assert resident.spec.parameters is not None


# errors


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("eng_Latn", "fra_Latn", "`target` must be one of"),
        ("fra_Latn", "eng_Latn", "`source` must be one of"),
        ("eng_Latn", "eng_Latn", "`target` must be a language that eng_Latn is translated into"),
        ("eng_Latn", "klingon", "`language` must be"),
    ],
)
def test_a_direction_that_is_not_served(resident, source, target, words):
    with pytest.raises(UsageError, match=words):
        resident.translate(["wake me up"], source, target)


def test_more_beams_than_memory_was_divided_for(resident):
    with pytest.raises(UsageError, match="`beams` must be at most 4"):
        resident.translate(["wake me up"], *ENG_DEU, search=SearchSettings(beams=5))


def test_masks_of_another_model(masks):
    norms = tuple(2 * norm for norm in masks.fingerprint.router_norms)
    wrong = dataclasses.replace(masks, fingerprint=dataclasses.replace(masks.fingerprint, router_norms=norms))
    with pytest.raises(UsageError, match="must belong to the model"):
        Translator("mini", wrong)


def test_memory_that_is_too_small_is_refused_with_what_is_needed(masks, small):
    with pytest.raises(UsageError, match=r"`memory` must be .* or more: .* of dense weights, .* experts for"):
        Translator("mini", masks, memory=small - 1, longest=64, beams=3)


def test_unknown_pinned_languages(masks):
    with pytest.raises(UsageError, match="`pinned` must be of"):
        Translator("mini", masks, pinned=["fra_Latn"])


def test_a_closed_translator(masks):
    translator = Translator("mini", masks, languages=["eng_Latn", "deu_Latn"])
    assert set(translator.directions) == {ENG_DEU, ENG_DEU[::-1]}
    assert translator.open
    translator.close()
    assert not translator.open
    for call in (translator.translate, translator.submit):
        with pytest.raises(Unavailable, match="must be open"):
            call(["wake me up"], *ENG_DEU)
    translator.close()


def test_a_translator_that_a_fault_has_ended(masks, monkeypatch):
    translator = Translator("mini", masks)
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    monkeypatch.setattr(translator._opened.runner, "choose", lambda jobs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        translator.translate(["wake me up"], *ENG_DEU)
    assert not translator.open
    with pytest.raises(Unavailable, match="has ended"):
        translator.translate(["wake me up"], *ENG_DEU)
    translator.close()


@pytest.mark.parametrize("memory", [None, "small"])
def test_closing_at_once_gives_up_what_is_not_finished(masks, small, memory, text):
    """While many threads ask: all come to an end at once, with an answer or the news."""
    translator = Translator("mini", masks, memory=small if memory else None, longest=64, beams=3)
    told = []

    def ask(number):
        source, target = translator.directions[number * 7]
        try:
            while True:
                translator.translate(text.lines(source)[:20] * 10, source, target)
        except Unavailable as error:
            told.append(str(error))

    asking = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in asking:
        thread.start()
    wait_for(lambda: translator.figures().in_flight, seconds=20)
    start = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda drain: translator.close(drain=drain), [True, False, False]))
    for thread in asking:
        thread.join(20)
    assert time.monotonic() - start < 20
    assert len(told) == 8
    assert all("must be open" in error for error in told)
    assert any("until all is translated" in error for error in told)  # who had sentences in flight
    figures = translator.figures()
    assert figures.waiting == figures.in_flight == 0


def test_closing_finishes_what_was_submitted(masks):
    translator = Translator("mini", masks)
    found = []
    asking = threading.Thread(
        target=lambda: found.extend(translator.translate(["wake me up at nine"] * 30, *ENG_DEU)), daemon=True
    )
    asking.start()
    wait_for(lambda: translator.figures().sentences == 30, seconds=20)
    translator.close()
    asking.join(20)
    assert len(found) == 30


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"memory": True}, "`memory` must be a whole number from 1, but is True instead"),
        ({"memory": 1e9}, "`memory` must be a whole number"),
        ({"memory": "much"}, "`memory` must be a size"),
        ({"beams": 2.5}, "`beams` must be a whole number"),
        ({"rows": 0}, "`rows` must be a whole number from 1"),
        ({"longest": "64"}, "`longest` must be a whole number"),
        ({"longest": 600}, "`longest` must be from 8 to 512 tokens"),
        ({"patience": float("nan")}, "`patience` must be seconds"),
        ({"languages": "eng_Latn"}, "`languages` must be a list of languages"),
        ({"pinned": "eng_Latn"}, "`pinned` must be a list of languages"),
        ({"languages": ["eng_Latn"]}, "`languages` must be two or more"),
        ({"languages": []}, "`languages` must be two or more"),
    ],
)
def test_settings_that_mean_nothing(named, words):
    with pytest.raises(UsageError, match=words):
        Translator("mini", **named)


@pytest.mark.parametrize("texts", ["wake me up", [None], [b"wake"]])
def test_what_is_no_list_of_texts(resident, texts):
    with pytest.raises(UsageError, match="`texts` must be a list of texts"):
        resident.translate(texts, *ENG_DEU)


def test_masks_by_their_file(masks, tmp_path):
    masks.save(tmp_path / "masks.json")
    with Translator("mini", str(tmp_path / "masks.json"), languages=["eng_Latn", "deu_Latn"]) as translator:
        assert translator.translate(["wake me up"], *ENG_DEU)[0].text


def test_closing_twice_at_once(masks):
    translator = Translator("mini", masks)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: translator.close(), range(8)))


def test_figures_may_be_asked_for_at_any_time(paged, requests, alone):
    """By other threads, while swaps go on: nothing that the engine decides by is touched."""
    over = threading.Event()

    def look():
        while not over.wait(0.0001):
            assert len(paged.figures().resident) <= 20
            assert len(paged.sides()) == 20

    watching = [threading.Thread(target=look) for _ in range(2)]
    for thread in watching:
        thread.start()
    try:
        same(answers(paged, requests[:120]), alone[:120])
    finally:
        over.set()
        for thread in watching:
            thread.join()


# failures


def test_each_caller_has_an_error_of_its_own(masks, monkeypatch):
    from nllb_prune.generation.loop import DecodingLoop

    with Translator("mini", masks) as translator:
        monkeypatch.setattr(DecodingLoop, "step", lambda self: 1 / 0)
        errors = []
        for in_flight in translator.submit(["wake me up at nine"] * 5, *ENG_DEU):
            with pytest.raises(ZeroDivisionError) as told:
                in_flight.result()
            errors.append(told.value)
    assert len(set(map(id, errors))) == 5


def test_a_failed_read_fails_those_who_wait_for_it_alone(masks, small, monkeypatch, requests, alone):
    """Reads fail at random; what comes out is right or a clear error, and in the end everything is right again."""
    chance, real, broken = random.Random(3), os.preadv, [True]

    def preadv(descriptor, buffers, offset):
        if broken[0] and chance.random() < 0.003:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    with Translator("mini", masks, memory=small, longest=64, beams=3) as translator:
        monkeypatch.setattr(os, "preadv", preadv)
        failed = 0
        for request, expected in zip(requests[:100], alone[:100], strict=True):
            with contextlib.suppress(UsageError):
                same(answers(translator, [request], threads=1), [expected], share=1.0)
                continue
            failed += 1
        assert 5 < failed < 95
        broken[0] = False
        same(answers(translator, requests), alone)


def test_a_file_that_is_cut_off_while_serving(masks, mini_on_disk, requests, alone):
    pinned = ["eng_Latn", "deu_Latn"]
    memory = least_memory(masks, longest=64, beams=3, pinned=pinned)
    with Translator(mini_on_disk, masks, memory=memory, longest=64, beams=3, pinned=pinned) as translator:
        first = next(n for n, (_, *direction) in enumerate(requests) if tuple(direction) == ENG_DEU)
        same(answers(translator, [requests[first]]), [alone[first]])
        with (mini_on_disk / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(Unavailable, match=r"must (hold|stay as it was)"):
            translator.translate(["haydi"], "tur_Latn", "rus_Cyrl")
        same(answers(translator, [requests[first]]), [alone[first]])


def test_an_error_in_the_model_is_told_and_does_not_end_the_service(masks, monkeypatch, requests, alone):
    from nllb_prune.generation.loop import DecodingLoop

    with Translator("mini", masks) as translator:
        with monkeypatch.context() as patched:
            patched.setattr(DecodingLoop, "step", lambda self: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                translator.translate(["wake me up at nine"], *ENG_DEU)
        same(answers(translator, requests[:20]), alone[:20])
        assert translator.figures().in_flight == 0
