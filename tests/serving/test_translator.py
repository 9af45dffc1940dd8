"""A translator's answers are those of a model alone, whoever shares the batch and whatever swaps; errors stay apart."""

import asyncio
import contextlib
import dataclasses
import os
import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nllb_prune import Translator, UsageError
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.source import model_folder

NEAR_TIE = 1e-4
"""Of log-probabilities in float32: rows of another batch are summed in another order."""
BEAM = SearchSettings(beams=3, alternatives=2)
ENG_DEU = ("eng_Latn", "deu_Latn")


def least_memory(masks, **settings):
    """Return the bytes of which a translator says that it needs them."""
    with pytest.raises(UsageError, match="or more") as told:
        Translator("mini", masks, memory=1, **settings)
    return int(str(told.value).split("(")[1].split(" ")[0])


def answers(translator, requests, *, threads=16, search=None):
    """Ask from many threads at once."""

    def ask(request):
        sentence, source, target = request
        named = {} if search is None else {"search": search}
        return translator.translate([sentence], source, target, whole=True, **named)[0]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, requests))


def same(found, expected, *, share=0.999):
    """Require equal texts, but for near-ties: another translation whose log-probability differs by rounding alone."""
    different = 0
    for ours, theirs in zip(found, expected, strict=True):
        [sentence] = ours.sentences
        if ours.text != theirs[0].text:
            different += 1
            assert sentence[0].score == pytest.approx(theirs[0].score, abs=NEAR_TIE)
        else:
            assert sentence[0].log_probability == pytest.approx(theirs[0].log_probability, abs=NEAR_TIE)
    assert different <= (1 - share) * len(expected) + 1


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
    least = least_memory_of(tmp_path / "union")
    with Translator(tmp_path / "union", memory=least, longest=64, beams=1) as swapping:
        assert swapping.plan.paged
        again = answers(swapping, [requests[n] for n in mine])
    assert [each.text for each in again] == [each.text for each in found]
    if scheme is None:
        same(found, [alone[n] for n in mine])


def least_memory_of(path):
    with pytest.raises(UsageError, match="or more") as told:
        Translator(path, memory=1, longest=64, beams=1)
    return int(str(told.value).split("(")[1].split(" ")[0])


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
    wait_for(lambda: resident.figures().waiting == 0, seconds=5)


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
        task = asyncio.ensure_future(resident.translate_async(["wake me up at nine"] * 500, *ENG_DEU))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    wait_for(lambda: resident.figures().waiting == 0, seconds=5)
    assert resident.translate(["wake me up"], *ENG_DEU)[0].text


def test_a_cancelled_task_leaves_nothing_behind_whenever_it_is_cancelled(resident):
    text = "\n".join(["Wake me up at nine in the morning."] * 300)

    async def ask(delay):
        task = asyncio.ensure_future(resident.translate_async([text], *ENG_DEU))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for delay in (0, 0.001, 0.01, 0.05):
        asyncio.run(ask(delay))
        wait_for(lambda: resident.figures().waiting == 0, seconds=5)


def test_a_cancelled_stream_ends_as_cancelled(resident):
    text = "\n".join(["Wake me up at nine in the morning."] * 300)

    async def consume():
        async for _ in resident.stream_async(text, *ENG_DEU):
            pass

    async def ask():
        task = asyncio.ensure_future(consume())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    wait_for(lambda: resident.figures().waiting == 0, seconds=5)


def test_an_asynchronous_stream_that_is_left_drops_its_sentences(resident):
    text = "\n".join(["Wake me up at nine in the morning every day of the week."] * 400)

    async def ask():
        stream = resident.stream_async(text, *ENG_DEU)
        assert await anext(stream)
        await stream.aclose()
        await asyncio.sleep(1)
        return resident.figures().waiting

    assert asyncio.run(ask()) == 0


def test_asynchronous_stream(resident):
    text = "Wake me up at nine.\nTurn off the lights."

    async def ask():
        return [part async for part in resident.stream_async(text, *ENG_DEU)]

    assert "".join(asyncio.run(ask())) == resident.translate([text], *ENG_DEU)[0].text


def wait_for(done, *, seconds):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


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
    translator.close()
    with pytest.raises(UsageError, match="must be open"):
        translator.translate(["wake me up"], *ENG_DEU)
    translator.close()


def test_closing_finishes_what_was_submitted(masks):
    translator = Translator("mini", masks)
    found = []
    asking = threading.Thread(
        target=lambda: found.extend(translator.translate(["wake me up at nine"] * 30, *ENG_DEU)), daemon=True
    )
    asking.start()
    wait_for(lambda: translator.figures().waiting, seconds=20)
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
        while not over.is_set():
            assert len(paged.figures().resident) <= 20

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


@pytest.fixture
def on_disk(tmp_path):
    return shutil.copytree(model_folder("mini"), tmp_path / "model", ignore=shutil.ignore_patterns("text"))


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


def test_a_file_that_is_cut_off_while_serving(masks, on_disk, requests, alone):
    pinned = ["eng_Latn", "deu_Latn"]
    memory = least_memory(masks, longest=64, beams=3, pinned=pinned)
    with Translator(on_disk, masks, memory=memory, longest=64, beams=3, pinned=pinned) as translator:
        first = next(n for n, (_, *direction) in enumerate(requests) if tuple(direction) == ENG_DEU)
        same(answers(translator, [requests[first]]), [alone[first]])
        with (on_disk / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(UsageError, match=r"must (hold|stay as it was)"):
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
