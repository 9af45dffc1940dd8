"""Measures that are plain functions of masks, and masks whose experts come in a known order."""

import random
from itertools import permutations

import pytest

from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack

STACKS = (Stack("encoder", "source", (1, 3), 32), Stack("decoder", "target", (1, 3), 32))
CODES = ("aaa", "bbb", "ccc")
DIRECTIONS = tuple(permutations(CODES, 2))
LOSSES = ("loss_change", "end_loss_change", "early_change", "late_change")


class FakeMeasure:
    """Figures that functions of masks and a direction give, a loss alone or several by name; keeps what was asked."""

    def __init__(self, losses, lengths=None, *, directions=DIRECTIONS):
        self.directions, self.signature = tuple(directions), {"text": "none", "sentences": 3}
        self._losses, self._lengths = losses, lengths
        self.asked = []

    def losses(self, masks, directions):
        self.asked.append(("losses", masks, tuple(directions)))
        return {each: self.losses_of(masks, each) for each in directions}

    def translations(self, masks, directions):
        self.asked.append(("translations", masks, tuple(directions)))
        return {each: self.lengths_of(masks, each) for each in directions}

    def losses_of(self, masks, direction):
        found = self._losses(masks, direction)
        return {**dict.fromkeys(LOSSES, 0.0), **(found if isinstance(found, dict) else {"loss_change": found})}

    def lengths_of(self, masks, direction):
        found = {} if self._lengths is None else self._lengths(masks, direction)
        return {"length_change": 0.0, "runaway_change": 0.0, **found}


def orders_of(places, experts, layers):
    """Every layer of every mask takes its experts in an order of its own."""
    return {
        place: [random.Random(f"{place}/{layer}").sample(range(experts), experts) for layer in range(layers)]
        for place in places
    }


def first_of(order, counts):
    return tuple(tuple(sorted(ids[:count])) for ids, count in zip(order, counts, strict=True))


@pytest.fixture(scope="session")
def fake_measure():
    """`FakeMeasure`, whose losses are of a function (masks, direction), and nothing changes the lengths."""
    return FakeMeasure


@pytest.fixture(scope="session")
def prefix():
    """The mask of the first so many experts of each layer of an order."""
    return first_of


@pytest.fixture(scope="session")
def make_masks():
    """Makes masks of the first so many experts of each layer, and their orders; 12 and 4 of 32 unless told."""

    def make(counts=(12, 4), *, stacks=STACKS, keys=None, granularity="language", others=None):
        keys = keys or {stack.name: CODES for stack in stacks}
        places = [(stack.name, key) for stack in stacks for key in keys[stack.name]]
        orders = orders_of(places, stacks[0].experts, len(stacks[0].layers))
        found = {stack.name: {} for stack in stacks}
        for stack, key in places:
            found[stack][key] = first_of(orders[stack, key], (others or {}).get((stack, key), counts))
        masks = MaskSet(
            model_name="small",
            fingerprint=Fingerprint.of(stacks, [1.0] * sum(each.total for each in stacks)),
            stacks=stacks,
            granularity=granularity,
            masks=found,
            plan={"criterion": "importance"},
        )
        return masks, orders

    return make


@pytest.fixture(scope="session")
def kept_by():
    """Returns how many experts a direction keeps in a stack."""

    def kept(masks, stack, direction):
        return sum(map(len, masks.mask(stack, *direction)))

    return kept


@pytest.fixture(scope="session")
def of_counts(make_masks):
    """Masks of so many experts in each layer of each mask, `(stack, key) -> counts`, always in the same orders."""

    def make(counts, *, stacks=STACKS):
        keys = {stack.name: [key for name, key in counts if name == stack.name] for stack in stacks}
        return make_masks(stacks=stacks, keys=keys, others=counts)[0]

    return make


@pytest.fixture(scope="session")
def plan_with(of_counts):
    """Weights of two stacks -> masks of 64 experts a language, as far as 4 to 60 of each stack allow."""

    def plan(weights):
        first, second = STACKS
        share = weights[first.name] / sum(weights.values())
        experts = min(max(round(64 * share), 4), 60)
        totals = {first.name: experts, second.name: 64 - experts}
        return of_counts({(stack.name, key): halves(totals[stack.name]) for stack in STACKS for key in CODES})

    return plan


def halves(total):
    return (total - total // 2, total // 2)


@pytest.fixture(scope="session")
def plan_totals(of_counts):
    """Experts of each mask -> masks."""

    def plan(totals):
        return of_counts({place: halves(total) for place, total in totals.items()})

    return plan


@pytest.fixture(scope="session")
def stacks():
    return STACKS
