import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.summary import Figure
from nllb_prune.report.compare import compare, difference
from nllb_prune.report.compare_page import notice_lines, render_comparison, terminal_table

FEW = {"full": (0.0, 0.0), "global": (-3.1, 0.09)}
NUMBER = st.floats(-100, 100)
WIDTH = st.floats(0, 10)


@pytest.fixture
def two(inputs):
    first = inputs.make_summary(effects=FEW)
    return first, inputs.make_summary(effects={**FEW, "global": (-1.0, 0.02), "random": (-9.0, 0.3)})


def test_differences_are_of_the_second_to_the_first(two):
    pair = compare(*two).configurations[1].figure("chrf", "all")
    first, second = (each["global"].figure("chrf") for each in two)
    assert pair.difference.value == pytest.approx(second.value - first.value)
    half = math.hypot(second.high - second.value, first.high - first.value)  # symmetrical: the variances add
    assert pair.difference.low == pytest.approx(pair.difference.value - half)
    assert pair.difference.high == pytest.approx(pair.difference.value + half)
    assert pair.difference.certain


@given(NUMBER, NUMBER, st.lists(WIDTH, min_size=4, max_size=4))
def test_the_interval_holds_the_difference_and_turns_with_the_order(a, b, widths):
    first = Figure(a, a - widths[0], a + widths[1])
    second = Figure(b, b - widths[2], b + widths[3])
    one, other = difference(first, second), difference(second, first)
    assert one.low <= one.value <= one.high
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert one.high - one.low <= sum(widths) + 1e-9


def test_the_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(5)
    draws = random.normal((3.0, 4.0), (1.0, 0.5), size=(20_000, 2))
    covered = [
        (found := difference(Figure(a, a - 1.96, a + 1.96), Figure(b, b - 0.98, b + 0.98))).low <= 1.0 <= found.high
        for a, b in draws
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


def test_numbers_of_different_signatures_are_shown_and_not_compared(two):
    first, second = two
    second = replace(second, signatures={**second.signatures, "bleu": ("tok:other",), "empty": ("empty|t:9",)})
    found = compare(first, second)
    pair = found.configurations[1]
    assert pair.figure("bleu", "all").difference is None
    assert pair.figure("empty", "all").difference is None
    assert pair.figure("any", "all").difference is None
    assert pair.figure("oscillation", "all").difference is not None
    assert pair.figure("chrf", "all").difference is not None
    assert [notice.what for notice in found.notices] == ["signature of BLEU", "signature of empty"]
    page = render_comparison(found)
    assert 'role="alert"' in page
    assert "tok:other" in page
    assert page.index("tok:other") < page.index("<h2>Configurations</h2>")
    assert any("NOT COMPARED" in line and "tok:other" in line for line in notice_lines(found.notices))
    _, rows = terminal_table(found)
    assert "not compared" in " ".join(rows[1])


def test_any_is_compared_whatever_the_threshold_of_unlikely(two):
    """Flagged by any detector leaves unlikely outputs out, whose threshold is fitted to each full model."""
    ours, theirs = (
        replace(
            summary,
            signatures={**summary.signatures, "unlikely": (f"unlikely|t:{threshold}|version:1",)},
            configurations=tuple(with_rate(each, "unlikely", 0.01) for each in summary.configurations),
        )
        for summary, threshold in zip(two, (1.9, 2.1), strict=True)
    )
    found = compare(ours, theirs)
    pair = found.configurations[1]
    assert pair.figure("unlikely", "all").difference is None
    change = theirs["global"].figure("any").value - ours["global"].figure("any").value
    assert pair.figure("any", "all").difference.value == pytest.approx(change)
    assert change != 0
    assert [notice.what for notice in found.notices] == ["signature of unlikely"]
    other = replace(theirs, signatures={**theirs.signatures, "empty": ("empty|t:9",)})
    assert compare(ours, other).configurations[1].figure("any", "all").difference is None


def with_rate(configuration, name, value):
    groups = (replace(each, figures={**each.figures, name: Figure(value, 0.0, 0.02)}) for each in configuration.groups)
    return replace(configuration, groups=tuple(groups))


def test_other_sentences_are_compared_in_nothing(inputs, two):
    found = compare(two[0], replace(two[1], sentences=12))
    assert all(each.difference is None for pair in found.configurations for each in pair.figures)
    assert all(pair.moved == () for pair in found.configurations)


def test_a_group_of_other_directions_is_not_compared(inputs):
    pairs = [(d.source, d.target) for d in inputs.summary.configurations[0].directions]
    first = inputs.make_summary(pairs, FEW)
    second = inputs.make_summary([pair for pair in pairs if pair != ("eng_Latn", "deu_Latn")], FEW)
    pair = compare(first, second).configurations[1]
    assert pair.figure("chrf", "out of English").difference is None
    assert pair.figure("chrf", "all").difference is None
    assert pair.figure("chrf", "into English").difference is not None


def test_what_may_differ_is_told(two):
    changed = replace(two[1], beams=4, model="other", versions={"sacrebleu": "9"}, test={"name": "x"})
    found = compare(two[0], changed)
    assert {notice.what for notice in found.notices} == {"beams", "model", "versions", "test"}
    assert not any(notice.withheld for notice in found.notices)
    assert 'role="alert"' not in render_comparison(found)
    assert compare(two[0], two[0]).notices == ()


def test_directions_that_moved_most_come_first(two):
    found = compare(*two)
    full, pruned = found.configurations
    assert full.moved == ()
    moves = [abs(each.difference) for each in pruned.moved]
    assert len(moves) == 20
    assert moves == sorted(moves, reverse=True)
    before, after = ({d.direction: d.figures["chrf"] for d in each["global"].directions} for each in two)
    assert moves[0] == pytest.approx(max(abs(after[name] - before[name]) for name in before))
    assert pruned.moved[0].direction in render_comparison(found)


def test_configurations_of_one_alone_are_named(two):
    found = compare(*two, names=("a", "b"))
    assert found.only == ((), ("random",))
    assert "Only b has random." in render_comparison(found)


def test_no_configuration_in_common_is_refused(inputs, two):
    with pytest.raises(UsageError, match="share a configuration, but the first has full, global and the second other"):
        compare(two[0], replace(two[0], configurations=(replace(two[0].configurations[0], name="other"),)))


def test_equal_input_gives_equal_bytes_and_json_holds_all(two):
    found = compare(*two)
    assert render_comparison(found) == render_comparison(compare(*two))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["configurations"][1]["figures"][0]["difference"] == asdict(
        found.configurations[1].figures[0].difference
    )
