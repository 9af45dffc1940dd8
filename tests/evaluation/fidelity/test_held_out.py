"""Held-out text: which lines are measured, what is found there, and that nothing is carried over between masks."""

import json
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.fidelity import full_model
from nllb_prune.evaluation.fidelity.fidelity import fidelity
from nllb_prune.evaluation.fidelity.full_model import FullDirection
from nllb_prune.evaluation.fidelity.held_out import LOSSES, Decoded, HeldOut, length_figures, spread_lines
from nllb_prune.generation.translate import translate
from nllb_prune.model.routing import clear_masks, set_masks
from nllb_prune.planning.measured import Reserve, Tolerances, guard
from nllb_prune.planning.measured.measure import only

TRANSLATED = ("length_change", "runaway_change", "detached_change")
DIRECTIONS = (("eng_Latn", "deu_Latn"), ("deu_Latn", "eng_Latn"), ("rus_Cyrl", "zho_Hans"))
NUMBERS = ([0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11])
"""Lines of twelve that three directions with four each have."""


@pytest.fixture(scope="module")
def text(test_text):
    return test_text.head(12)


@pytest.fixture(scope="module")
def held_out(mini, mini_tokenizer, text):
    return HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS, sentences=4, decoded=2)


@pytest.fixture(scope="module")
def some(random_masks):
    return random_masks(8, seed=7)


def test_losses_are_those_of_lines_spread_over_the_text(held_out, mini, mini_tokenizer, text, some):
    found = held_out.losses(some, DIRECTIONS)
    assert held_out.directions == tuple(found) == DIRECTIONS
    for direction, numbers in zip(DIRECTIONS, NUMBERS, strict=True):
        source, target = direction
        lines = ([text.lines(code)[n] for n in numbers] for code in direction)
        expected = fidelity(mini, mini_tokenizer, *lines, source=source, target=target, masks=some)
        assert found[direction] == {name: expected.value(name) for name in LOSSES}
        assert found[direction]["loss_change"] > 0.5  # an eighth of the experts, drawn at random


def test_only_directions_that_are_asked_for(held_out, some):
    two = held_out.losses(some, DIRECTIONS[:0:-1])
    assert list(two) == list(DIRECTIONS[:0:-1])
    assert two[DIRECTIONS[2]] == held_out.losses(some, DIRECTIONS)[DIRECTIONS[2]]
    assert held_out.losses(some, ()) == held_out.translations(some, ()) == {}


def far(output, reference, full):
    """Whether an output has to do with neither of two, by sacrebleu's own chrF2."""
    return all(CHRF().sentence_score(output, [other]).score <= 10 for other in (reference, full))


def test_lengths_are_those_of_translations(held_out, mini, mini_tokenizer, text, some):
    found = held_out.translations(some, DIRECTIONS)
    for direction, numbers in zip(DIRECTIONS, NUMBERS, strict=True):
        source, target = direction
        sources = [text.lines(source)[numbers[0]], text.lines(source)[numbers[2]]]  # two of four
        before, after = (
            translate(mini, mini_tokenizer, sources, source=source, target=target, masks=masks)
            for masks in (None, some)
        )
        references = [text.lines(target)[numbers[0]], text.lines(target)[numbers[2]]]
        assert held_out.decoded[direction] == Decoded(direction, sources, references, before)
        old, new = (["".join(each.split()) for each in side] for side in (before, after))
        longer = sum(len(b) > 2 * len(a) for a, b in zip(old, new, strict=True))
        shorter = sum(len(a) > 2 * len(b) for a, b in zip(old, new, strict=True))
        assert found[direction] == {
            "length_change": pytest.approx(len("".join(new)) / len("".join(old)) - 1),
            "runaway_change": (longer - shorter) / 2,
            "detached_change": sum(map(far, after, references, before)) / 2,
        }
    assert any(each["length_change"] for each in found.values())


def test_all_experts_change_no_length(held_out, random_masks):
    found = held_out.translations(random_masks(64), DIRECTIONS)
    assert found == {each: dict.fromkeys(TRANSLATED, 0.0) for each in DIRECTIONS}


def test_lines_at_the_start_can_be_skipped(mini, mini_tokenizer, text, some):
    held = HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS[:2], sentences=2, decoded=2, skipped=4)
    assert held.decoded["eng_Latn", "deu_Latn"].sources == [text.lines("eng_Latn")[n] for n in (4, 8)]
    assert held.decoded["deu_Latn", "eng_Latn"].sources == [text.lines("deu_Latn")[n] for n in (6, 10)]
    lines = ([text.lines(code)[n] for n in (4, 8)] for code in DIRECTIONS[0])
    alone = fidelity(mini, mini_tokenizer, *lines, source="eng_Latn", target="deu_Latn", masks=some)
    assert held.losses(some, DIRECTIONS[:1])[DIRECTIONS[0]]["loss_change"] == alone.loss_change
    assert (held.signature["skipped"], held.signature["lines"]) == (4, 8)


@pytest.mark.parametrize(
    ("sentences", "decoded", "picked"),
    [(4, 0, []), (4, 1, [0]), (4, 2, [0, 6]), (4, 3, [0, 3, 6]), (4, 4, [0, 3, 6, 9]), (12, 5, [0, 2, 4, 6, 8])],
)
def test_what_is_translated_is_spread_too(mini, mini_tokenizer, text, some, sentences, decoded, picked):
    direction = ("eng_Latn", "deu_Latn")
    held = HeldOut.of(mini, mini_tokenizer, text, [direction], sentences=sentences, decoded=decoded)
    kept = held.decoded[direction]
    assert kept.sources == [text.lines("eng_Latn")[n] for n in picked]
    assert kept.references == [text.lines("deu_Latn")[n] for n in picked]
    assert len(kept.outputs) == decoded
    figures = held.translations(some, [direction])[direction]
    assert set(figures) == set(TRANSLATED)
    assert all(math.isnan(value) for value in figures.values()) == (decoded == 0)


def test_the_signature_says_what_was_measured_on(held_out, text):
    assert held_out.signature == {
        "directions": 3,
        "sentences": 4,
        "decoded": 2,
        "skipped": 0,
        "lines": 12,
        "text": {code: text.digest(code) for code in ("deu_Latn", "eng_Latn", "rus_Cyrl", "zho_Hans")},
    }
    assert json.loads(json.dumps(held_out.signature)) == held_out.signature


def test_progress_wraps_the_directions(mini, mini_tokenizer, text):
    seen = []

    def progress(directions):
        for each in directions:
            seen.append(each)
            yield each

    HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS, sentences=1, decoded=0, progress=progress)
    assert tuple(seen) == DIRECTIONS


@pytest.mark.parametrize(
    ("sentences", "decoded", "skipped", "lines"),
    [(13, 0, 0, 12), (0, 0, 0, 12), (4, 5, 0, 12), (4, -1, 0, 12), (5, 0, 8, 4), (1, 0, 12, 0)],
)
def test_lines_that_there_are_not(mini, mini_tokenizer, text, sentences, decoded, skipped, lines):
    with pytest.raises(UsageError) as error:
        HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS, sentences=sentences, decoded=decoded, skipped=skipped)
    assert str(error.value) == (
        f"`sentences` must be 1 to {lines}, the lines that are held out, and `decoded` at most that, but are "
        f"{sentences} and {decoded} instead."
    )


def test_a_masked_model_is_refused(mini, mini_tokenizer, text, held_out, some):
    set_masks(mini, some, DIRECTIONS[0])
    try:
        with pytest.raises(UsageError, match="`model` must have all its experts and no masks set"):
            HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS, sentences=1, decoded=0)
        with pytest.raises(UsageError, match="`model` must have all its experts and no masks set"):
            held_out.losses(some, DIRECTIONS[:1])
    finally:
        clear_masks(mini)


# States of the encoder serve again while its mask stays.


def fresh(mini, tokenizer, text):
    source, target = DIRECTIONS[0]
    return FullDirection.of(mini, tokenizer, text.lines(source), text.lines(target), source=source, target=target)


@pytest.fixture(scope="module")
def variants(random_masks):
    a, b = random_masks(16, seed=1), random_masks(16, seed=2)
    return {
        "a": a,
        "b": b,
        "a's encoder": only(a, "encoder"),
        "a's decoder": only(a, "decoder"),
        "b's decoder": only(b, "decoder"),
        "a and b": replace(a, masks={"encoder": a.masks["encoder"], "decoder": b.masks["decoder"]}),
        "all": random_masks(64),
    }


@pytest.fixture(scope="module")
def alone(mini, mini_tokenizer, text, variants):
    """What each of them gives measured first."""
    return {name: fresh(mini, mini_tokenizer, text).measure(masks).statistics for name, masks in variants.items()}


def test_the_variants_differ(alone):
    tables = list(alone.values())
    assert all(not np.array_equal(a, b) for n, a in enumerate(tables) for b in tables[:n])


@pytest.mark.parametrize(
    "order",
    [
        *(" ".join(order) for order in permutations("aba")),
        *("|".join(order) for order in permutations(("a's decoder", "a's encoder", "b"))),
        "a|a and b|b|a and b",
        "a|all|a",
        "b|b's decoder|a's decoder|b",
        "all|a's encoder|all|a",
        "a|a|a",
    ],
)
def test_what_was_measured_before_changes_nothing(mini, mini_tokenizer, text, variants, alone, order):
    full = fresh(mini, mini_tokenizer, text)
    for name in order.split("|" if "|" in order else " "):
        assert np.array_equal(full.measure(variants[name]).statistics, alone[name])


def test_translating_in_between_changes_nothing(held_out, variants):
    first = held_out.losses(variants["a"], DIRECTIONS)
    held_out.translations(variants["b"], DIRECTIONS)
    assert held_out.losses(variants["a"], DIRECTIONS) == first


def test_the_encoder_runs_when_its_mask_changes(monkeypatch, mini, mini_tokenizer, text, variants):
    full, runs = fresh(mini, mini_tokenizer, text), []
    usual = full_model.encoder_states
    monkeypatch.setattr(full_model, "encoder_states", lambda *given: runs.append(1) or usual(*given))
    found = {}
    for name in ("a's decoder", "b's decoder", "a", "a's encoder", "a and b", "b", "all", "a's decoder"):
        before = len(runs)
        full.measure(variants[name])
        found[name, before] = len(runs) - before
    # the full model ran it, so a full encoder needs no other; "a", "b" and "all" bring a new mask
    assert [number > 0 for number in found.values()] == [False, False, True, False, False, True, True, False]


def test_a_guard_on_a_model(mini, mini_tokenizer, text, random_masks):
    held = HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS[:2], sentences=2, decoded=1)
    masks = random_masks(56, seed=3)
    orders = {
        (stack.name, "*"): [[*ids, *sorted({*range(64)} - {*ids})] for ids in masks.masks[stack.name]["*"]]
        for stack in masks.stacks
    }
    tolerances = Tolerances(loss_change=0.01, length_change=0.5, runaway_change=1.0)
    found = guard(
        masks, held, orders, reserve=Reserve(limit=24, cost={"encoder": 1, "decoder": 1}), tolerances=tolerances
    )
    record = found.masks.plan["guard"]
    grown = sum(each["*"]["kept"] - each["*"]["planned"] for each in record["masks"].values())
    assert 0 < grown <= 24
    again = HeldOut.of(mini, mini_tokenizer, text, DIRECTIONS[:2], sentences=2, decoded=1)
    readings = again.losses(found.masks, DIRECTIONS[:2])
    for direction, figures in readings.items():
        told = record["directions"]["-".join(direction)]["figures"]
        assert {name: told[name] for name in LOSSES} == pytest.approx(figures, rel=1e-4, abs=1e-6)
    assert ["/".join(place) for place in found.failed] == record["failed"]


@pytest.mark.parametrize(
    ("before", "after", "length", "runaway"),
    [
        (["ab cd", "x"], ["abcd", "x"], 0.0, 0.0),
        (["abcd"], ["a b c d\u00a0e\n"], 0.25, 0.0),
        (["abcd"], ["ab"], -0.5, 0.0),
        (["abcd"], ["abcdabcd"], 1.0, 0.0),  # twice as long is not more than that
        (["abcd"], ["abcdabcda"], 1.25, 1.0),
        (["abcdabcda"], ["abcd"], -5 / 9, -1.0),
        (["abcd", "abcdabcda"], ["abcdabcda", "abcd"], 0.0, 0.0),
        (["ab"] * 4, ["ab", "ab", "ab", "abababab"], 0.75, 0.25),
        (["", "ab"], ["", "ab"], 0.0, 0.0),
        (["", "ab"], ["a", "ab"], 0.5, 0.5),
        (["ab", "ab"], ["", "ab"], -0.5, -0.5),
        ([""], ["a"], math.nan, 1.0),
        ([""], [""], math.nan, 0.0),
        ([" "], ["\t"], math.nan, 0.0),
        ([], [], math.nan, math.nan),
    ],
)
def test_length_figures(before, after, length, runaway):
    found = length_figures(before, after)
    assert found == pytest.approx({"length_change": length, "runaway_change": runaway}, nan_ok=True)


@pytest.mark.parametrize(
    ("output", "detached"),
    [
        ("turn on the light", 0.0),  # as the full model's
        ("turn off the lamp", 0.0),  # close to the reference
        ("put the light on", 0.0),  # close enough to both
        ("wwwwww", 1.0),
        ("", 1.0),
    ],
)
def test_detached(output, detached):
    decoded = Decoded(("deu_Latn", "eng_Latn"), ["licht an"] * 2, ["turn off the lamp"] * 2, ["turn on the light"] * 2)
    found = decoded.figures([output, "turn on the light"])
    assert found["detached_change"] == detached / 2


def test_translations_that_are_missing_are_not_left_out():
    with pytest.raises(ValueError, match="zip"):
        length_figures(["a", "b"], ["a"])


@pytest.mark.parametrize(
    ("lines", "count", "turn", "turns", "first", "expected"),
    [
        (12, 4, 0, 3, 0, [0, 3, 6, 9]),
        (12, 4, 1, 3, 0, [1, 4, 7, 10]),
        (12, 4, 2, 3, 100, [102, 105, 108, 111]),
        (10, 3, 0, 1, 0, [0, 3, 6]),
        (10, 10, 4, 5, 0, list(range(10))),
        (5, 1, 3, 5, 0, [3]),
        (5, 1, 3, 90, 0, [0]),
    ],
)
def test_lines_evenly_spaced(lines, count, turn, turns, first, expected):
    assert spread_lines(lines, count, turn=turn, turns=turns, first=first) == expected


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_lines_are_there_and_different_and_others_each_turn(lines, data):
    count, turns = data.draw(st.integers(1, lines)), data.draw(st.integers(1, 40))
    first = data.draw(st.integers(0, 500))
    every = [spread_lines(lines, count, turn=turn, turns=turns, first=first) for turn in range(turns)]
    for numbers in every:
        assert len(set(numbers)) == len(numbers) == count
        assert all(first <= n < first + lines for n in numbers)
        gaps = [(b - a) % lines for a, b in zip(numbers, [*numbers[1:], numbers[0]], strict=True)]
        assert count == 1 or max(gaps) - min(gaps) <= 1
    starts = [numbers[0] for numbers in every]
    assert starts == sorted(starts)  # they go through the first gap
    assert len(set(starts)) >= min(turns, lines // count)
    if turns * count >= lines:
        assert set().union(*every) == set(range(first, first + lines))
