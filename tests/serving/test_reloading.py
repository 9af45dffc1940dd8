"""Masks are changed while texts are translated: each answer is that of the old or of the new ones, and none is lost."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from nllb_prune import Translator, UsageError
from nllb_prune.errors import Unavailable
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.model.expert_store import MemoryStore
from nllb_prune.model.paged import expert_ids
from nllb_prune.model.pager import places_of
from tests.serving.asking import ENG_DEU, answers, least_memory, same, wait_for

SETTINGS = {"longest": 64, "beams": 1}


@pytest.fixture(scope="module")
def few(requests):
    return requests[:60]


@pytest.fixture(scope="module")
def within(few, offline, masks, fewer, shifted):
    """(masks) -> the best translations of `few`, found alone."""
    found = {each.signature: offline(few, masks=each) for each in (masks, fewer, shifted)}
    return lambda used: found[used.signature]


@pytest.fixture(scope="module")
def shifted(masks):
    """Masks of the same sizes whose experts are mostly not those of `masks`."""
    moved = {
        stack: {key: [sorted((expert + 21) % 64 for expert in ids) for ids in mask] for key, mask in by_key.items()}
        for stack, by_key in masks.masks.items()
    }
    return replace(masks, masks=moved)


@pytest.fixture(scope="module")
def small(masks, shifted):
    return max(least_memory(each, **SETTINGS) for each in (masks, shifted))


@pytest.fixture(params=["in memory", "paged"])
def translator(request, masks, small):
    memory = {"in memory": None, "paged": small}[request.param]
    with Translator("mini", masks, memory=memory, **SETTINGS) as translator:
        yield translator


def only(masks, *codes):
    """The masks of some languages."""
    left = {stack: {code: by_key[code] for code in codes} for stack, by_key in masks.masks.items()}
    return replace(masks, masks=left)


@contextmanager
def stopped(translator):
    """Let the engine take no step before the event that is given is set; the end sets it, too."""
    runner, go_on = translator._opened.runner, threading.Event()
    step = runner.step
    runner.step = lambda: (go_on.wait(20), step())[1]
    try:
        yield go_on
    finally:
        go_on.set()


def unchanged(translator, masks, requests, expected):
    assert translator.masks is masks
    same(answers(translator, requests), expected)


# what comes out


def test_translations_are_those_of_the_masks_in_use(translator, few, within, masks, fewer, shifted):
    paged = translator.plan.paged
    for used in (masks, fewer, shifted, masks):
        translator.reload(used)
        assert translator.masks is used
        same(answers(translator, few), within(used))
    assert translator.plan.paged == paged
    assert translator.figures().waiting == 0


def test_all_that_is_in_memory_comes_back_into_it(masks, shifted, fewer, requests):
    with Translator("mini", masks) as translator:
        for used in (shifted, fewer):
            before = translator.figures()
            translator.reload(used)
            wait_for(lambda: all(each.resident for each in translator.sides()), seconds=10)
            assert translator.figures().experts_moved > before.experts_moved
            calm = translator.figures().swaps
            answers(translator, requests[:20])
            assert translator.figures().swaps == calm


def test_what_is_there_stays_there(masks):
    with Translator("mini", masks) as translator:
        translator.reload(masks)
        translator.translate(["wake me up"], *ENG_DEU)
        assert translator.figures().experts_moved == 0


def test_a_model_that_was_in_memory_pages_when_it_must(few, within, masks):
    two = only(masks, *ENG_DEU)
    with Translator("mini", two) as translator:
        assert not translator.plan.paged
        translator.reload(masks)
        assert translator.plan.paged
        assert len(translator.directions) == 90
        same(answers(translator, few), within(masks))
        assert translator.figures().swaps > 10
        translator.reload(two)
        assert not translator.plan.paged
        wait_for(lambda: len(translator.figures().resident) == 4, seconds=10)
        assert set(translator.directions) == {ENG_DEU, ENG_DEU[::-1]}


def test_pinned_languages_come_back_in(masks, shifted, few, within):
    pinned = ["spa_Latn"]
    memory = max(least_memory(each, **SETTINGS, pinned=pinned) for each in (masks, shifted))
    with Translator("mini", masks, memory=memory, **SETTINGS, pinned=pinned) as translator:
        translator.reload(shifted)
        wait_for(lambda: {"encoder.spa_Latn", "decoder.spa_Latn"} <= {*translator.figures().resident}, seconds=10)
        same(answers(translator, few), within(shifted))
        assert {"encoder.spa_Latn", "decoder.spa_Latn"} <= {*translator.figures().resident}


def test_masks_for_a_model_that_had_none(few, within, masks):
    with Translator("mini") as translator:
        assert translator.offers_full
        translator.reload(masks)
        assert not translator.offers_full
        assert translator.masks is masks
        same(answers(translator, few[:40]), within(masks)[:40])


def test_all_experts_are_offered_as_before(few, offline, masks, fewer, within):
    with Translator("mini", masks, full=True) as translator:
        translator.reload(fewer)
        assert len(translator.sides()) == 22
        same(answers(translator, few[:30], full=True), offline(few[:30], masks=None))
        same(answers(translator, few[:30]), within(fewer)[:30])


def test_a_file_is_read(translator, fewer, tmp_path):
    fewer.save(tmp_path / "masks.json")
    translator.reload(str(tmp_path / "masks.json"))
    assert translator.masks == fewer


# while others translate


def test_each_answer_is_of_masks_that_were_in_use_meanwhile(translator, few, within, masks, fewer, shifted):
    order = [masks]
    begun, ended, over, asked, errors = [0], [0], threading.Event(), [0], []

    def ask(seed):
        chance = random.Random(seed)
        while not over.is_set():
            number = chance.randrange(len(few))
            first = ended[0]
            sentence, *direction = few[number]
            [found] = translator.translate([sentence], *direction, whole=True)
            possible = [within(used)[number] for used in order[first : begun[0] + 1]]
            asked[0] += 1
            if found.text not in [each[0].text for each in possible]:
                score = found.sentences[0][0].score
                if all(abs(score - each[0].score) > 1e-4 for each in possible):
                    errors.append((few[number], found.text, possible))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, seed) for seed in range(8)]
        for turn in range(9):
            order.append([fewer, shifted, masks][turn % 3])
            begun[0] += 1
            translator.reload(order[-1])
            ended[0] += 1
            more = asked[0] + 8
            wait_for(lambda more=more: asked[0] > more or errors, seconds=20)
        over.set()
        for each in asking:
            each.result()
    assert not errors
    figures = translator.figures()
    assert figures.sentences == asked[0] > 72
    assert figures.waiting == 0


def test_who_is_in_flight_goes_on_and_who_is_not_served_any_more_is_told(masks, offline, monkeypatch):
    sentence = "wake me up at nine in the morning every day of the week"
    [expected] = offline([(sentence, *ENG_DEU)])
    with Translator("mini", masks, rows=4) as translator, stopped(translator) as go_on:
        change = translator._service.change
        monkeypatch.setattr(translator._service, "change", lambda given: (change(given), go_on.set()))
        german = translator.submit([sentence] * 4, *ENG_DEU)
        wait_for(lambda: translator.figures().in_flight, seconds=10)
        spanish = translator.submit([sentence] * 10, "eng_Latn", "spa_Latn")
        late = translator.submit([sentence] * 4, *ENG_DEU)
        translator.reload(only(masks, "spa_Latn", "eng_Latn"))
        assert {each.result().text for each in german} == {expected[0].text}
        assert all(each.result().text for each in spanish)
        for each in late:
            with pytest.raises(UsageError, match="`target` must be one of eng_Latn, spa_Latn, but is deu_Latn instead"):
                each.result()
        with pytest.raises(UsageError, match="`target` must be one of eng_Latn, spa_Latn"):
            translator.translate([sentence], *ENG_DEU)


def test_several_reloads_at_once(translator, few, within, masks, fewer, shifted):
    with ThreadPoolExecutor(6) as pool:
        asking = pool.submit(answers, translator, few, threads=4)
        list(pool.map(translator.reload, [fewer, shifted, masks, shifted, fewer]))
        asking.result()
    assert translator.masks in (masks, fewer, shifted)
    same(answers(translator, few[:40]), within(translator.masks)[:40])


# what is refused


def test_masks_that_are_not_right_change_nothing(masks, few, within, tmp_path):
    norms = tuple(2 * norm for norm in masks.fingerprint.router_norms)
    other = replace(masks, fingerprint=replace(masks.fingerprint, router_norms=norms))
    full = {stack: {**by_key, "deu_Latn": [list(range(64))] * 3} for stack, by_key in masks.masks.items()}
    (tmp_path / "other.json").write_text("{}")
    wrong = {
        "`masks` must belong to the model": other,
        "`masks` must cover all that is served of `languages`, but do not cover eng_Latn into deu_Latn": (
            only(masks, "eng_Latn", "spa_Latn")
        ),
        "`masks` must cover a direction": only(masks, "eng_Latn"),
        r"`masks` must keep at most \d+ experts in sparse layer 0 of the": replace(masks, masks=full),
        "must be a mask file of nllb-prune, but is other JSON": tmp_path / "other.json",
        r"nothing\.json` must": tmp_path / "nothing.json",
    }
    languages = ["eng_Latn", "deu_Latn", "spa_Latn"]
    mine = [n for n, (_, *direction) in enumerate(few) if {*direction} <= {*languages}]
    with Translator("mini", masks, languages=languages) as translator:
        for words, given in wrong.items():
            with pytest.raises(UsageError, match=words) as told:
                translator.reload(given)
            assert "\n" not in str(told.value)
        assert translator.masks is masks
        assert translator.figures().experts_moved == translator.figures().swaps == 0
        same(answers(translator, [few[n] for n in mine]), [within(masks)[n] for n in mine])


def test_what_is_pinned_must_be_covered(masks):
    with Translator("mini", masks, pinned=["eng_Latn"]) as translator:
        with pytest.raises(UsageError, match="`masks` must cover all that is pinned, eng_Latn, but do not"):
            translator.reload(only(masks, "deu_Latn", "spa_Latn"))
        assert translator.masks is masks


def test_a_pruned_checkpoint_must_hold_the_experts(masks, fewer, shifted, tmp_path, requests, offline):
    languages = ("eng_Latn", "deu_Latn", "spa_Latn")
    directions = [(a, b) for a in languages for b in languages if a != b]
    export("mini", tmp_path / "pruned", masks=masks, directions=directions, settings=ExportSettings())
    inside = {
        stack: {key: [ids[: len(ids) // 2] for ids in mask] for key, mask in by_key.items()}
        for stack, by_key in masks.masks.items()
    }
    half = replace(masks, masks=inside)
    mine = [request for request in requests if {*request[1:]} <= {*languages}]
    with Translator(tmp_path / "pruned") as translator:
        with pytest.raises(UsageError, match="`masks` must use experts that the pruned checkpoint holds"):
            translator.reload(shifted)
        same(answers(translator, mine), offline(mine))
        translator.reload(half)
        assert set(translator.directions) == set(directions)
        same(answers(translator, mine), offline(mine, masks=half))


def test_a_dense_model_has_no_masks(masks):
    with (
        Translator("mini-dense") as translator,
        pytest.raises(UsageError, match="`masks` must belong to the model"),
    ):
        translator.reload(masks)


def test_a_closed_translator(masks, fewer):
    translator = Translator("mini", masks)
    translator.close()
    with pytest.raises(Unavailable, match="must be open"):
        translator.reload(fewer)


@pytest.mark.parametrize("drain", [True, False])
def test_closing_while_masks_wait_for_those_in_flight(masks, fewer, drain):
    sentences = 60 if drain else 1000  # which are to be unfinished when it is closed
    text = "\n".join(["Wake me up at nine in the morning every day of the week."] * sentences)
    translator = Translator("mini", masks, rows=2)
    [in_flight] = translator.submit([text], *ENG_DEU)
    wait_for(lambda: translator.figures().in_flight, seconds=10)
    with ThreadPoolExecutor(1) as pool:
        reloading = pool.submit(translator.reload, fewer)
        wait_for(lambda: translator._opened.engine._change or reloading.done(), seconds=10)
        translator.close(drain=drain)
        if drain:
            reloading.result(10)
            assert in_flight.result().text
        else:
            assert isinstance(reloading.exception(10), Unavailable | None)
            with pytest.raises(Unavailable):
                in_flight.result()


def test_a_reload_that_is_broken_off_changes_nothing(masks, fewer, monkeypatch, few, within):
    with Translator("mini", masks) as translator:
        change = translator._service.change

        def interrupted(given):
            monkeypatch.undo()
            in_flight.extend(translator.submit(["wake me up at nine in the morning"] * 20, *ENG_DEU))
            wait_for(lambda: translator.figures().in_flight, seconds=10)
            change(given)
            raise KeyboardInterrupt

        in_flight = []
        monkeypatch.setattr(translator._service, "change", interrupted)
        with stopped(translator), pytest.raises(KeyboardInterrupt):
            translator.reload(fewer)
        assert all(each.result().text for each in in_flight)
        unchanged(translator, masks, few[:20], within(masks)[:20])
        translator.reload(fewer)
        unchanged(translator, fewer, few[:20], within(fewer)[:20])


# what cannot be read


def test_experts_that_cannot_be_read_come_when_they_can(masks, shifted, few, within, monkeypatch):
    real, broken = os.preadv, [True]

    def preadv(descriptor, buffers, offset):
        if broken[0]:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    with Translator("mini", masks) as translator:
        monkeypatch.setattr(os, "preadv", preadv)
        translator.reload(shifted)
        for _ in range(2):  # while they are tried before anybody waits for them, and when all have been
            with pytest.raises(Unavailable, match="Input/output error"):
                translator.translate(["wake me up"], *ENG_DEU)
            wait_for(lambda: translator._opened.engine.idle, seconds=20)
        assert translator.open
        broken[0] = False
        same(answers(translator, few), within(shifted))


def test_files_that_were_written_to_are_refused_though_their_experts_are_new(masks, shifted, mini_on_disk, few, within):
    with Translator(mini_on_disk, masks) as translator:
        os.utime(mini_on_disk / "model.safetensors", ns=(1, 1))
        translator.reload(shifted)
        with pytest.raises(Unavailable, match="must stay as it was when the model was loaded"):
            translator.translate(["wake me up"], *ENG_DEU)


def test_files_that_were_removed_are_read_as_they_were(masks, shifted, mini_on_disk, few, within):
    with Translator(mini_on_disk, masks) as translator:
        (mini_on_disk / "model.safetensors").unlink()
        translator.reload(shifted)
        same(answers(translator, few[:40]), within(shifted)[:40])


# experts in the memory of the host, as for a CUDA device


@pytest.fixture
def from_memory(masks, small):
    with Translator("mini", masks, memory=small, **SETTINGS) as translator:
        pager = translator._opened.pager
        shapes = {layer: places_of(bank)[0] for layer, bank in pager.banks.items()}
        pager.store = MemoryStore(pager.store, shapes, pinned=False)
        pager.store.hold(expert_ids(translator._opened.serving.now.kept))
        yield translator


def held(translator):
    return {*translator._opened.pager.store._tensors}


def test_memory_holds_what_the_masks_in_use_need(from_memory, masks, shifted, fewer, few, within):
    for used in (shifted, fewer, masks):
        from_memory.reload(used)
        assert held(from_memory) == {*expert_ids(from_memory._opened.serving.now.kept)}
        same(answers(from_memory, few[:40]), within(used)[:40])


def test_a_failed_read_leaves_memory_as_it_was(from_memory, masks, shifted, few, within, monkeypatch):
    before = held(from_memory)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(UsageError, match="Input/output error"):
            from_memory.reload(shifted)
    assert held(from_memory) == before
    unchanged(from_memory, masks, few[:20], within(masks)[:20])
