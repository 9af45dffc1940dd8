"""The record of the guard as it is read."""

import math

import pytest

from nllb_prune.planning.measured import Tolerances
from nllb_prune.report.guard import guard_of
from nllb_prune.report.tolerated import FIGURES, readings, times


def by_place(record):
    return {f"{each.stack}/{each.key}": each for each in record.masks}


def test_masks_without_a_guard_have_no_record(searched):
    assert guard_of(searched["ratio"]) is None


def test_what_needs_most_comes_first(guarded):
    record = guard_of(guarded())
    places = ["decoder/eng_Latn", "decoder/deu_Latn", "encoder/deu_Latn", "encoder/eng_Latn"]
    assert list(by_place(record)) == places
    assert [each.direction for each in record.directions] == ["deu_Latn-eng_Latn", "eng_Latn-deu_Latn"]
    assert [each.key for each in record.touched] == ["eng_Latn", "deu_Latn"]
    assert record.added == (2, 2)
    assert record.unmeasured == ("encoder/fra_Latn", "decoder/fra_Latn")


def test_a_mask_says_what_it_failed_for(guarded):
    found = by_place(guard_of(guarded()))
    reading, direction = found["decoder/eng_Latn"].worst
    assert (reading.name, direction, round(reading.excess, 6)) == ("loss_change", "deu_Latn-eng_Latn", 1.2)
    assert found["decoder/eng_Latn"].most == 1.5
    reading, direction = found["encoder/deu_Latn"].worst
    assert (reading.name, direction, round(reading.excess, 6)) == ("length_change", "", 0.8)
    assert found["encoder/deu_Latn"].direction is None  # it passed, whatever its direction did


def test_a_mask_that_fails_by_itself_is_not_blamed_for_the_direction_of_another(guarded):
    record = guarded().plan["guard"]
    record["masks"]["encoder"]["deu_Latn"] |= {"passed": False}
    record["masks"]["encoder"]["deu_Latn"]["figures"]["runaway_change"] = 0.011
    masks = guarded(masks=record["masks"], failed=["encoder/deu_Latn", "decoder/eng_Latn"])
    found = by_place(guard_of(masks))
    assert found["encoder/deu_Latn"].direction is None
    assert found["encoder/deu_Latn"].worst[0].name == "runaway_change"
    assert found["decoder/eng_Latn"].direction.direction == "deu_Latn-eng_Latn"


def test_no_direction_that_passed_is_blamed(guarded):
    record = guarded().plan["guard"]
    record["masks"]["decoder"]["deu_Latn"] |= {"passed": False}  # just over before it was rounded
    found = by_place(guard_of(guarded(masks=record["masks"], failed=["decoder/deu_Latn"])))
    assert found["decoder/deu_Latn"].direction is None


def test_the_worse_of_the_mean_and_the_direction_is_told(guarded):
    record = guarded().plan["guard"]
    record["masks"]["decoder"]["eng_Latn"]["figures"]["loss_change"] = 0.21
    found = by_place(guard_of(guarded(masks=record["masks"])))["decoder/eng_Latn"]
    assert found.direction.direction == "deu_Latn-eng_Latn"
    assert (round(found.excess, 6), found.worst[1]) == (1.4, "")


def test_lengths_of_a_single_direction_are_not_judged(guarded):
    found = {each.direction: each for each in guard_of(guarded()).directions}
    assert "length_change" not in found["eng_Latn-deu_Latn"].readings
    assert round(found["eng_Latn-deu_Latn"].worst.excess, 6) == 0.6


@pytest.mark.parametrize("value", [None, math.nan])
def test_what_was_not_measured_is_never_over(value):
    found = readings({"length_change": value, "loss_change": 0.3}, Tolerances())
    assert list(found) == ["loss_change", "length_change"]
    assert (found["length_change"].excess, found["length_change"].over) == (0.0, False)
    assert found["loss_change"].over
    assert FIGURES["length_change"].text(found["length_change"].value) == "—"


def test_figures_are_those_of_the_tolerances_in_words():
    assert set(FIGURES) == set(Tolerances.__slots__)
    assert [each.words for each in FIGURES.values()] == [
        "token loss", "loss at the end", "ends too early", "ends too late", "length", "runaway translations",
        "detached translations",
    ]  # fmt: skip
    assert FIGURES["loss_change"].text(-0.0123) == "−0.012"
    assert FIGURES["runaway_change"].text(0.0104) == "+1.0"
    assert FIGURES["length_change"].tolerance(0.03) == "±3 %"
    assert FIGURES["early_change"].tolerance(0.025) == "up to 2.5 %"


@pytest.mark.parametrize(
    ("excess", "text"), [(2.3456, "2.3"), (1.0417, "1.04"), (1.0004, "1.0004"), (1.0, "1.0"), (0.96, "1.0"), (0, "0.0")]
)
def test_what_is_just_over_does_not_look_like_a_pass(excess, text):
    assert times(excess) == text


def test_masks_of_directions(guarded_pairs):
    record = guard_of(guarded_pairs)
    worst, other = record.masks[0], record.masks[1]
    assert (worst.stack, worst.key, worst.worst[1]) == ("decoder", "deu_Latn-eng_Latn", "deu_Latn-eng_Latn")
    assert (other.key, other.grown, record.added) == ("eng_Latn-deu_Latn", True, (0, 2))


def test_a_model_with_one_sparse_stack_has_no_losses_by_mask(guarded_decoder):
    (failed, passed) = guard_of(guarded_decoder).masks
    assert list(failed.readings) == ["length_change", "runaway_change"]
    assert (failed.key, failed.worst[0].name, failed.worst[1]) == ("eng_Latn", "loss_change", "deu_Latn-eng_Latn")
    assert (passed.key, passed.excess) == ("deu_Latn", 0.0)


@pytest.mark.parametrize("granularity", ["language", "global"])
def test_what_planning_wrote_is_read(planned, granularity):
    masks = planned(guard=True, granularity=granularity)
    record, written = guard_of(masks), masks.plan["guard"]
    assert {f"{each.stack}/{each.key}" for each in record.masks if not each.passed} == set(written["failed"])
    for mask in record.masks:
        assert mask.kept == sum(map(len, masks.masks[mask.stack][mask.key]))
        assert (mask.excess > 1) != mask.passed
        assert (mask.most > 1) == (mask.grown or not mask.passed)
    assert 0 < max(record.added) <= record.reserve[0]
    assert record.grown > 0
    assert record.unmeasured == ()
