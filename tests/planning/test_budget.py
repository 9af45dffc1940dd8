import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.budget import Budget, allocate, parse_kept, parse_ratio

NLLB = (
    Stack("encoder", "source", (3, 7, 11, 15, 19, 23), 128),
    Stack("decoder", "target", (3, 7, 11, 15, 19, 23), 128),
)
MINI = (Stack("encoder", "source", (1, 3, 5), 64), Stack("decoder", "target", (1, 3, 5), 64))
SINGLE = (Stack("decoder", "direction", (0, 1, 2, 3), 32),)


@pytest.mark.parametrize(
    ("stacks", "kept", "encoder", "decoder"),
    [
        (NLLB, 288, 36, 12),  # the published 80 % at 3:1 (arXiv 2212.09811)
        (NLLB, 0.1875, 36, 12),
        (MINI, 0.25, 24, 8),
        (MINI, 0.1875, 18, 6),
        (MINI, 0.125, 12, 4),
        (MINI, 1.0, 64, 64),
    ],
)
def test_three_to_one(stacks, kept, encoder, decoder):
    allocation = allocate(stacks, Budget(kept, parse_ratio("3:1")))
    layers = len(stacks[0].layers)
    assert allocation.counts == {"encoder": (encoder,) * layers, "decoder": (decoder,) * layers}
    assert allocation == allocate(stacks, Budget(kept))
    assert bool(allocation.notes) == (kept == 1.0)


def test_remainders_go_to_the_lowest_layers():
    counts = allocate(MINI, Budget(100, {"encoder": 1, "decoder": 1})).counts
    assert counts == {"encoder": (17, 17, 16), "decoder": (17, 17, 16)}


def test_a_half_goes_to_the_first_stack():
    counts = allocate(MINI, Budget(97, {"encoder": 1, "decoder": 1})).counts
    assert {stack: sum(layers) for stack, layers in counts.items()} == {"encoder": 49, "decoder": 48}


def test_one_stack_has_no_ratio():
    assert allocate(SINGLE, Budget(0.5)).counts == {"decoder": (16, 16, 16, 16)}


def test_below_the_minimum_is_clamped_with_a_note():
    allocation = allocate(MINI, Budget(24, parse_ratio("9:1")))
    assert allocation.counts == {"encoder": (6, 6, 6), "decoder": (2, 2, 2)}
    assert allocation.notes == (
        "9:1 would give the decoder 2.4 experts, below its minimum: it keeps 6 and the rest of the model pays.",
    )


def test_above_all_experts_is_clamped_with_a_note():
    allocation = allocate(MINI, Budget(300, parse_ratio("3:1")))
    assert allocation.counts == {"encoder": (64, 64, 64), "decoder": (36, 36, 36)}
    assert "it keeps all 192" in allocation.notes[0]
    assert len(allocation.notes) == 1


@st.composite
def problems(draw):
    stacks = tuple(
        Stack(name, "source", tuple(range(draw(st.integers(1, 6)))), draw(st.integers(4, 64)))
        for name in ("a", "b", "c")[: draw(st.integers(1, 3))]
    )
    minimum = draw(st.integers(1, 4))
    least, most = minimum * sum(len(stack.layers) for stack in stacks), sum(stack.total for stack in stacks)
    ratio = {stack.name: draw(st.floats(0.01, 100)) for stack in stacks}
    return stacks, Budget(draw(st.integers(least, most)), ratio, minimum)


@given(problems())
def test_allocation_is_exact_even_and_within_bounds(problem):
    stacks, budget = problem
    allocation = allocate(stacks, budget)
    assert allocation.total == budget.kept
    for stack in stacks:
        counts = allocation.counts[stack.name]
        assert len(counts) == len(stack.layers)
        assert min(counts) >= budget.minimum
        assert max(counts) <= stack.experts
        assert max(counts) - min(counts) <= 1
        assert list(counts) == sorted(counts, reverse=True)


@given(problems())
def test_without_notes_the_ratio_holds_within_one_expert(problem):
    stacks, budget = problem
    allocation = allocate(stacks, budget)
    whole = sum(budget.ratio.values())
    if not allocation.notes:
        for stack in stacks:
            wanted = budget.kept * budget.ratio[stack.name] / whole
            assert len(stacks) == 1 or abs(sum(allocation.counts[stack.name]) - wanted) < 1 + 1e-6


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(11), r"12 to 384 experts \(2 or more in each of 6 sparse layers\), but is 11"),
        (Budget(0.01), "but is 4 instead"),
        (Budget(385), "but is 385 instead"),
        (Budget(-5), "but is -5 instead"),
        (Budget(1.5), "at most 1.0 as a fraction"),
        (Budget(0.0), "above 0"),
        (Budget(float("nan")), "nan"),
        (Budget(True), "True"),
        (Budget(96, None, 65), "`minimum` must be 1 to 64"),
        (Budget(96, None, 0), "`minimum` must be 1 to 64"),
        (Budget(96, {"encoder": 1}), "encoder and decoder"),
        (Budget(96, {"encoder": 1, "decoder": 0}), "positive weight"),
        (Budget(96, {"encoder": 1, "decoder": 1, "other": 1}), "encoder and decoder"),
    ],
)
def test_impossible_budgets_are_refused(budget, message):
    with pytest.raises(UsageError, match=message):
        allocate(MINI, budget)


def test_a_dense_model_is_refused():
    with pytest.raises(UsageError, match="dense"):
        allocate((), Budget(0.5))


def test_parse_ratio():
    assert parse_ratio("3:1") == {"encoder": 3.0, "decoder": 1.0}
    assert parse_ratio("1:2.5") == {"encoder": 1.0, "decoder": 2.5}


@pytest.mark.parametrize("text", ["", "3", "3:1:1", "3:x", "0:1", "-1:1", "inf:1", "nan:1"])
def test_parse_ratio_refuses(text):
    with pytest.raises(UsageError, match="such as 3:1"):
        parse_ratio(text)


@pytest.mark.parametrize(("text", "kept"), [("96", 96), ("0.25", 0.25), ("25%", 0.25), ("1", 1), ("1.0", 1.0)])
def test_parse_kept(text, kept):
    assert parse_kept(text) == kept
    assert type(parse_kept(text)) is type(kept)


@pytest.mark.parametrize("text", ["", "many", "%", "1/4"])
def test_parse_kept_refuses(text):
    with pytest.raises(UsageError, match="percentage"):
        parse_kept(text)
