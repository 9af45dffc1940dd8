"""What holds for every scope, granularity and budget."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.masks import MaskSet
from nllb_prune.planning import plan
from nllb_prune.planning.scopes import SCOPES

GRANULARITIES = st.sampled_from(["language", "pair", "global", "union"])
RATIOS = st.sampled_from([None, "3:1", "1:1", "1:5"])


@pytest.fixture(scope="module")
def by_seed(make_statistics):
    return [make_statistics(seed=seed) for seed in range(3)]


@st.composite
def asked(draw):
    granularity = draw(GRANULARITIES)
    return {
        "scope": draw(st.sampled_from(sorted(SCOPES))),
        "criterion": draw(st.sampled_from(["importance", "top2", "routing_mass"])),
        "granularity": granularity,
        "budget_for": draw(st.sampled_from(["each", "union"])) if granularity == "union" else "each",
        "ratio": draw(RATIOS),
        "minimum": draw(st.integers(2, 4)),
        "protect_end": draw(st.integers(0, 2)),
        "reference": "bbb",
        "aggregation": draw(st.sampled_from(["pooled", "mean-of-directions"])),
    }


def units(masks, *, whole_model):
    """Sizes of what has a budget of its own."""
    sizes = {(stack, key): sum(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}
    if not whole_model and masks.granularity == "language":
        encoder, decoder = ({size for (name, _), size in sizes.items() if name == stack} for stack in masks.masks)
        return {a + b for a in encoder for b in decoder}
    return {sum(size for (_, other), size in sizes.items() if other == key) for _, key in sizes}


def inside(small, large):
    return all(set(a) <= set(b) for a, b in zip(small, large, strict=True))


@given(asked(), st.integers(0, 2), st.integers(16, 32))
def test_counts_are_exact_and_minimums_kept(by_seed, options, seed, kept):
    masks = plan(by_seed[seed], kept=kept, **options)
    if options["budget_for"] == "union" or options["granularity"] != "union":
        assert units(masks, whole_model=SCOPES[options["scope"]].whole_model) == {kept}
    for by_key in masks.masks.values():
        assert all(len(layer) >= options["minimum"] for mask in by_key.values() for layer in mask)


@given(asked(), st.integers(0, 2), st.lists(st.integers(16, 32), min_size=2, max_size=3))
def test_a_larger_budget_keeps_all_that_a_smaller_does(by_seed, options, seed, budgets):
    plans = [plan(by_seed[seed], kept=kept, **options) for kept in sorted(budgets)]
    for small, large in pairwise(plans):
        for stack, by_key in small.masks.items():
            for key, mask in by_key.items():
                assert inside(mask, large.masks[stack][key])


@given(asked(), st.integers(0, 2), st.integers(16, 32), st.integers(0, 16))
def test_pruning_further_within_masks(by_seed, options, seed, kept, more):
    if options["granularity"] == "union":
        options["languages"] = ["aaa"]
    wide = plan(by_seed[seed], kept=min(kept + more, 32), **options)
    if options["scope"] in ("layer", "ranking") and not options["protect_end"]:
        assert (
            plan(by_seed[seed], kept=kept, within=wide, **options).masks
            == plan(by_seed[seed], kept=kept, **options).masks
        )
    narrow = plan(by_seed[seed], kept=kept, within=wide, **options)
    for stack, by_key in narrow.masks.items():
        assert all(inside(mask, wide.masks[stack][key]) for key, mask in by_key.items())


@given(asked(), st.integers(16, 32))
def test_equal_input_gives_equal_bytes_and_stays_as_it_was(by_seed, tmp_path_factory, options, kept):
    statistics, path = by_seed[0], tmp_path_factory.mktemp("plan") / "masks.json"
    before = statistics.to_bytes()
    masks = plan(statistics, kept=kept, **options)
    assert masks.to_text() == plan(statistics, kept=kept, **options).to_text()
    assert statistics.to_bytes() == before
    masks.save(path)
    assert MaskSet.load(path) == masks
