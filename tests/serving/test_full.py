"""A call may ask for all experts beside others that use those of the masks, and is answered as by the full model."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from nllb_prune import Translator, UsageError
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from tests.serving.asking import ENG_DEU, answers, least_memory, same


@pytest.fixture(scope="module")
def within_all(requests, offline):
    return offline(requests[:80], masks=None)


@pytest.fixture(scope="module")
def both(masks):
    with Translator("mini", masks, full=True) as translator:
        yield translator


def test_both_choices_at_once(both, requests, alone, within_all):
    joined = []
    join = both._opened.runner.join

    def watched(jobs):
        joined.append({job.payload.full for job in jobs})
        return join(jobs)

    both._opened.runner.join = watched
    with ThreadPoolExecutor(2) as pool:
        kept = pool.submit(answers, both, requests[:80], full=False)
        full = pool.submit(answers, both, requests[:80], full=True)
        same(kept.result(), alone[:80])
        same(full.result(), within_all)
    assert {True, False} in joined
    assert both.figures().swaps == 0


def test_the_choices_differ(alone, within_all):
    assert sum(ours[0].text != theirs[0].text for ours, theirs in zip(alone, within_all, strict=False)) > 10


def test_every_way_to_ask(both, requests, within_all):
    sentence, *direction = requests[0]
    expected = within_all[0][0].text

    async def ask():
        [found] = await both.translate_async([sentence], *direction, whole=True, full=True)
        return found.text, "".join([part async for part in both.stream_async(sentence, *direction, full=True)])

    [in_flight] = both.submit([sentence], *direction, whole=True, full=True)
    assert in_flight.result().text == expected
    assert asyncio.run(ask()) == (expected, "".join(both.stream(sentence, *direction, full=True)))


def test_sides_of_all_experts(both):
    sides = both.sides_of(*ENG_DEU, full=True)
    assert [(each.stack, each.key) for each in sides] == [("encoder", "full"), ("decoder", "full")]
    assert all(each.mask == (tuple(range(64)),) * 3 for each in sides)
    assert [each.key for each in both.sides_of(*ENG_DEU)] == list(ENG_DEU)
    assert len(both.sides()) == 22
    assert all(each.resident for each in both.sides())
    assert both.offers_full


def test_memory_for_all_experts(masks, requests, within_all):
    least = least_memory(masks, longest=64, beams=1, full=True)
    with pytest.raises(UsageError, match="for all of the decoder's experts and all of the encoder's experts, and"):
        Translator("mini", masks, longest=64, beams=1, full=True, memory=least - 1)
    assert least > least_memory(masks, longest=64, beams=1)
    with Translator("mini", masks, longest=64, beams=1, full=True, memory=least) as translator:
        assert not translator.plan.paged
        same(answers(translator, requests[:30], full=True), within_all[:30])


def test_without_masks_all_experts_are_what_is_kept(requests, within_all):
    for full in (False, True):
        with Translator("mini", full=full) as translator:
            assert translator.offers_full
            assert translator.masks is None
            assert translator.sides_of(*ENG_DEU, full=True) == translator.sides_of(*ENG_DEU)
            assert [each.key for each in translator.sides()] == ["*", "*"]
            same(answers(translator, requests[:20], full=full), within_all[:20])


def test_masks_for_all_languages_have_another_side(masks, requests, within_all):
    kept = {stack: {"*": by_key["eng_Latn"]} for stack, by_key in masks.masks.items()}
    with Translator("mini", replace(masks, granularity="global", masks=kept), full=True) as translator:
        assert [each.key for each in translator.sides()] == ["*", "full"] * 2
        same(answers(translator, requests[:20], full=True), within_all[:20])


def test_what_is_not_offered_is_refused(masks):
    with Translator("mini", masks) as translator:
        assert not translator.offers_full
        for ask in (translator.translate, translator.submit):
            with pytest.raises(UsageError, match=r"`full` must be False, .* open the translator with `full=True`"):
                ask(["wake me up"], *ENG_DEU, full=True)
        with pytest.raises(UsageError, match="`full` must be False"):
            translator.sides_of(*ENG_DEU, full=True)


def test_a_direction_that_masks_do_not_cover_is_not_served_by_all_experts_either(masks):
    two = {stack: {code: by_key[code] for code in ENG_DEU} for stack, by_key in masks.masks.items()}
    with Translator("mini", replace(masks, masks=two), full=True) as translator:
        assert set(translator.directions) == {ENG_DEU, ENG_DEU[::-1]}
        with pytest.raises(UsageError, match="`target` must be one of"):
            translator.translate(["wake me up"], "eng_Latn", "spa_Latn", full=True)


def test_a_pruned_checkpoint_that_lacks_experts_refuses(masks, tmp_path):
    export("mini", tmp_path / "pruned", masks=masks, directions=[ENG_DEU], settings=ExportSettings())
    with pytest.raises(UsageError, match=r"`full` must be False for a pruned checkpoint, which lacks experts.* mini"):
        Translator(tmp_path / "pruned", full=True)
    (tmp_path / "pruned" / "masks.json").unlink(missing_ok=True)
    with Translator(tmp_path / "pruned") as translator:
        assert not translator.offers_full


def test_a_dense_model_uses_all_that_it_has():
    with Translator("mini-dense", full=True) as translator:
        assert translator.offers_full
        assert translator.sides() == ()
        assert translator.translate(["wake me up"], *ENG_DEU, full=True)[0].text
