"""Spreading the lines of each target over its sources."""

from collections import Counter, defaultdict
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.calibration.pairing import LEAST, Lines, every_line, ring, spread
from nllb_prune.errors import UsageError

CODES = [f"{a}{b}c_Latn" for a in "abcdef" for b in "abcdef"]
LINES = [str(n) for n in range(5000)]


def all_of(languages):
    return list(permutations(CODES[:languages], 2))


some_directions = st.sets(st.sampled_from(all_of(7)), min_size=1).map(sorted)


def by_target(items):
    found = defaultdict(list)
    for item in items:
        found[item.direction[1]].append(item)
    return found


@settings(max_examples=150, deadline=None)
@given(some_directions, st.integers(1, 700), st.data())
def test_each_line_of_each_target_once(directions, lines, data):
    count = data.draw(st.none() | st.integers(1, lines))
    items = spread(directions, lines=lines, per_target=count)
    wanted = count or lines
    assert {item.direction for item in items} <= set(directions)
    assert len({item.id for item in items}) == len(items)
    grouped = by_target(items)
    assert set(grouped) == {target for _, target in directions}
    for target, parts in grouped.items():
        chosen = [line for part in parts for line in part.of(LINES[:lines])]
        assert sorted(chosen, key=int) == LINES[:wanted]
        sizes = [len(part.of(LINES[:lines])) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(LEAST, wanted)
        sources = {source for source, into in directions if into == target}
        assert len(parts) == min(len(sources), max(1, wanted // LEAST))  # as many as have lines enough
    assert spread(directions[::-1], lines=lines, per_target=count) == items
    assert spread([item.direction for item in items], lines=lines, per_target=count) == items


@pytest.mark.parametrize("count", [1, 47, 48, 95, 96, 200, 500, 48 * 35, 3000])
@pytest.mark.parametrize("languages", [2, 3, 10, 36])
def test_sources_are_used_about_equally(languages, count):
    items = spread(all_of(languages), lines=count)
    used = Counter(item.direction[0] for item in items)
    lines = Counter()
    for item in items:
        lines[item.direction[0]] += len(item.of(LINES[:count]))
    sources = max(1, min(languages - 1, count // LEAST))
    assert len(items) == languages * sources
    assert set(used) == set(CODES[:languages])  # no language is left without encoder statistics
    assert max(used.values()) - min(used.values()) <= 2
    assert max(lines.values()) <= 1.5 * count + 2
    assert all(len(item.of(LINES[:count])) >= min(LEAST, count) for item in items)


def test_neighbours_go_to_different_sources():
    items = spread(all_of(4), lines=144)
    assert [(item.first, item.step, item.end) for item in items[:3]] == [(0, 3, 144), (1, 3, 144), (2, 3, 144)]
    for target, parts in by_target(items).items():
        assert [item.direction[0] for item in parts] == [code for code in CODES[:4] if code != target]


def test_few_lines_go_to_one_source_each_in_turn():
    items = spread(all_of(4), lines=LEAST * 2 - 1)
    assert sorted(item.direction[0] for item in items) == CODES[:4]
    assert [item.direction[1] for item in items] == CODES[:4]


def test_only_directions_that_may_be_used():
    directions = [("deu_Latn", "eng_Latn"), ("fra_Latn", "eng_Latn"), ("eng_Latn", "deu_Latn")]
    items = spread(directions, lines=1000, per_target=200)
    assert {item.id: len(item.of(LINES)) for item in items} == {
        "eng_Latn-deu_Latn": 200,
        "deu_Latn-eng_Latn": 100,
        "fra_Latn-eng_Latn": 100,
    }


def test_many_languages_stay_few_items():
    codes = [f"l{n:03}_Latn" for n in range(202)]
    items = spread(list(permutations(codes, 2)), lines=997)
    assert len(items) == 202 * (997 // LEAST)


@pytest.mark.parametrize(("lines", "count"), [(10, 11), (10, 0), (10, -1), (0, None)])
def test_lines_that_there_are_not(lines, count):
    with pytest.raises(UsageError, match=rf"`pairs_per_target` must be 1 to {lines}, the lines of the text, but is"):
        spread(all_of(3), lines=lines, per_target=count)


def test_every_line():
    assert every_line([("eng_Latn", "deu_Latn")], lines=7) == [Lines(("eng_Latn", "deu_Latn"), 0, 1, 7)]
    assert Lines(("eng_Latn", "deu_Latn"), 1, 3, 6).of(LINES) == ["1", "4"]


@settings(max_examples=150, deadline=None)
@given(some_directions, st.integers(1, 8))
def test_a_ring_has_so_many_sources_of_each_target(directions, most):
    chosen = ring(directions, most)
    assert list(chosen) == sorted({target for _, target in directions})
    for target, sources in chosen.items():
        possible = [source for source, into in directions if into == target]
        assert sources == sorted(set(sources))
        assert set(sources) <= set(possible)
        assert len(sources) == min(most, len(possible))
    assert ring(directions[::-1], most) == chosen
    assert ring([(source, target) for target in chosen for source in chosen[target]], most) == chosen


@pytest.mark.parametrize("most", [1, 2, 3, 6, 7, 20])
@pytest.mark.parametrize("languages", [2, 3, 8, 21, 36])
def test_a_ring_uses_all_sources_about_equally(languages, most):
    used = Counter(source for sources in ring(all_of(languages), most).values() for source in sources)
    assert set(used) == set(CODES[:languages])
    assert max(used.values()) - min(used.values()) <= 2
    assert sum(used.values()) == languages * min(most, languages - 1)


def test_a_ring_starts_elsewhere_for_each_target():
    a, b, c, d = CODES[:4]
    assert ring(all_of(4), 1) == {a: [b], b: [c], c: [d], d: [a]}
    assert ring(all_of(4), 2) == {a: [b, c], b: [c, d], c: [a, d], d: [a, b]}
    assert ring(all_of(4), 3) == ring(all_of(4), 99) == {a: [b, c, d], b: [a, c, d], c: [a, b, d], d: [a, b, c]}


def test_no_directions_make_no_ring():
    assert ring([], 3) == {}


def test_what_is_spread_is_a_ring():
    items = spread(all_of(7), lines=3 * LEAST)
    assert {each: [i.direction[0] for i in items if i.direction[1] == each] for each in CODES[:7]} == ring(all_of(7), 3)
