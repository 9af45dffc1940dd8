"""The memory is divided by the stated rule, never exceeded, and refused with what is needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.serving.memory import Needs, counts_of, largest_sides, plan_memory

MASKS = {
    ("encoder", "a"): ((0, 1), (2, 3, 4)),
    ("encoder", "b"): ((1, 5, 6), (2, 7)),
    ("decoder", "c"): ((0, 1), (0, 1)),
}


def needs(**changed):
    least, most = counts_of(MASKS)
    usual = {
        "fixed": 1000,
        "expert": {"encoder": 10, "decoder": 20},
        "least": least,
        "most": most,
        "least_working": 100,
        "usual_working": 400,
        "staying": frozenset({"decoder"}),
        "largest": largest_sides(MASKS),
    }
    return Needs(**usual | changed)


def test_counts():
    assert counts_of(MASKS) == ({"encoder": (3, 3), "decoder": (2, 2)}, {"encoder": (4, 4), "decoder": (2, 2)})
    pinned = counts_of(MASKS, [("encoder", "a")])[0]
    assert pinned["encoder"] == (4, 4)
    assert largest_sides(MASKS) == (("encoder", "a"), ("decoder", "c"))


def test_the_least_is_enough_and_a_byte_less_is_refused():
    minimum = 1000 + 6 * 10 + 4 * 20 + 100
    plan = plan_memory(needs(), minimum)
    assert (plan.slots, plan.working, plan.paged) == (needs().least, 100, True)
    with pytest.raises(UsageError) as told:
        plan_memory(needs(), minimum - 1)
    assert "`memory` must be 1.24 kB (1240 bytes) or more" in str(told.value)
    assert "the encoder's experts for a and the decoder's experts for c" in str(told.value)


def test_without_a_bound_everything_is_in():
    plan = plan_memory(needs(), None)
    assert (plan.slots, plan.working, plan.total, plan.paged) == (needs().most, None, None, False)


def test_what_experts_leave_over_is_for_sentences():
    plan = plan_memory(needs(), 5000)
    assert (plan.slots, plan.paged) == (needs().most, False)
    assert plan.working == 5000 - 1000 - plan.experts


def test_what_sentences_need_until_they_are_finished_gets_slots_first():
    least, most = {"encoder": (3,), "decoder": (3,)}, {"encoder": (30,), "decoder": (30,)}
    each = needs(least=least, most=most, expert={"encoder": 10, "decoder": 10}, usual_working=100)
    slots = [plan_memory(each, each.minimum + 10 * more).slots for more in (0, 5, 9, 19, 54)]
    assert [(each["encoder"][0], each["decoder"][0]) for each in slots] == [(3, 3), (3, 8), (3, 12), (9, 16), (30, 30)]


@given(st.integers(1240, 3000), st.integers(100, 1000))
def test_any_memory(memory, usual):
    each = needs(usual_working=usual)
    plan = plan_memory(each, memory)
    assert plan.total == memory
    assert plan.working >= each.least_working
    for stack, layers in plan.slots.items():
        for slots, least, most in zip(layers, each.least[stack], each.most[stack], strict=True):
            assert least <= slots <= most
    assert plan.paged == (plan.slots != each.most)
    more = plan_memory(each, memory + 50)
    assert all(a <= b for stack in plan.slots for a, b in zip(plan.slots[stack], more.slots[stack], strict=True))
