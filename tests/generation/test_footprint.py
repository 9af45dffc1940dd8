"""The bound on memory holds against what torch allocates, whatever joins and leaves, and is not far above it."""

import random

import pytest
import torch

from nllb_prune.generation.cache import TargetCache, columns_for, rows_for
from nllb_prune.generation.footprint import Footprint, Held, Rows
from nllb_prune.generation.loop import DecodingLoop, Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.families import family_of
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import routing_of
from tests.allocation import peak_of

NEVER = -1  # no token


def footprint(model, beams):
    config, dtype = model.config, next(model.parameters()).dtype
    sizes = family_of(config).decoding_sizes(config)
    return Footprint(sizes, routing_of(model).spec, itemsize=dtype.itemsize, beams=beams)


def sentences(count, length, limit, first=0):
    return [
        Sentence(key=first + n, source=[6000, *[5 + n] * (length - 2), 2], language=6001, limit=limit)
        for n in range(count)
    ]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def any_model(request):
    return load_model("mini", dtype=request.param)


@pytest.mark.parametrize(
    ("rows", "length", "beams"),
    [(1, 9, 1), (24, 20, 1), (6, 20, 4), (1, 120, 4), (3, 150, 1)],
)
def test_rows_that_join_together(any_model, rows, length, beams):
    blocks = blocks_of(any_model)
    blocks.end = NEVER  # nothing ends before its limit
    limit = length + 10
    blocks.reserve(limit + 1)
    loop, joining = DecodingLoop(blocks, SearchSettings(beams=beams)), Rows(rows, length, limit)

    def run():
        loop.add(sentences(rows, length, limit))
        while len(loop):
            loop.step()

    each = footprint(any_model, beams)
    bound = each.cache(Rows(), joining) + each.workspace(Rows(), joining)
    most = peak_of(run)
    assert most <= bound <= 5 * most


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_that_come_and_go(beams):
    """At every join the bound of that moment holds from then on until the next."""
    model = load_model("mini")
    blocks, chance = blocks_of(model), random.Random(7)
    blocks.end = NEVER
    blocks.reserve(200)
    loop, each, key, bounds = DecodingLoop(blocks, SearchSettings(beams=beams)), footprint(model, beams), 0, []

    def run():
        nonlocal key
        for _ in range(12):
            count, length = chance.randint(1, 6), chance.choice([4, 12, 60])
            limit = chance.choice([5, 20, 90])
            joining = Rows(count, length, limit)
            here = loop.in_flight
            bounds.append(each.cache(here, joining, loop.held) + each.workspace(here, joining))
            loop.add(sentences(count, length, limit, first=key))
            key += count
            for _ in range(chance.randint(1, 30)):
                loop.step()

    assert peak_of(run) <= max(bounds)


def test_the_cache_grows_no_further_than_it_says():
    chance, cache = random.Random(1), TargetCache(layers=1, beams=1)
    like = torch.zeros(1)
    most_rows = most_limit = 0
    ends = []
    for _ in range(3000):
        if chance.random() < 0.2:
            count, limit = chance.randint(1, 5), chance.choice([4, 10, 200])
            cache.join(count, like)
            ends += [limit] * count
            most_rows, most_limit = max(most_rows, cache.rows), max(most_limit, limit)
        if not cache.rows:
            continue
        cache.begin_step()
        cache.end_step([[0]] * cache.rows)
        ends = [left - 1 for left in ends]
        while ends and min(ends) <= 1:
            gone = ends.index(min(ends))
            last = cache.rows - 1
            cache.move([(gone, last)] if gone != last else [], last)
            ends[gone] = ends[-1]
            ends.pop()
        rows, columns = cache.size
        assert rows <= rows_for(most_rows)
        assert columns <= columns_for(most_limit)


def test_nothing_in_flight_takes_nothing():
    model = load_model("mini")
    assert footprint(model, 4).cache(Rows()) == 0


def test_what_is_held_counts():
    each = footprint(load_model("mini"), 1)
    assert each.cache(Rows(1, 10, 20), held=Held(100, 1000, 5000)) > 100 * each.cache(Rows(1, 10, 20)) / 10
