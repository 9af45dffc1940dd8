import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.overgeneration import COLUMNS, RATES, Overgeneration, measure, rate, resampled, summarise
from nllb_prune.evaluation.significance import paired_bootstrap


def measured(*lines, source="eng_Latn", target="deu_Latn"):
    """Measure lines of (output, reference, source)."""
    hypotheses, references, sources = zip(*lines, strict=True)
    return measure(hypotheses, references, sources=sources, source=source, target=target)


GOOD = ("Weck mich um neun Uhr", "Weck mich um neun Uhr", "wake me at nine o'clock")


@pytest.mark.parametrize(
    ("output", "source", "flagged"),
    [
        ("a b c d a b c d a b c d", "one two three four", True),  # 3 against 1
        ("a b c d a b c d", "one two three four", False),  # 2 against 1
        ("a b c d a b c d a b c d", "w x y z w x y z w x y z", False),  # the source repeats as much
        ("a a a a a", "one two", True),  # 2 against 0, as the source has no 4-gram
        ("a a a", "one two", False),
        ("", "one two three four", False),
    ],
)
def test_oscillation_in_words(output, source, flagged):
    assert measured((output, "x", source)).column("oscillating").tolist() == [flagged]


def test_oscillation_in_characters_where_words_are_not_spaced():
    output = "打开灯光打开灯光打开灯光"
    found = measured((output, "打开灯光", "turn on the light"), target="zho_Hans")
    assert found.column("top_ngram").tolist() == [3]
    assert found.oscillating == 1
    assert measured((output, "x", "turn on the light"), target="deu_Latn").oscillating == 0


def test_repeat_rate_counts_within_an_output():
    found = measured(("a b a b a", "x", "y"), ("a b", "x", "y"))
    # bigrams: ab ba ab ba of which 2 distinct, and ab; trigrams: aba bab aba
    assert found.repeat_rate == pytest.approx({2: 1 - 3 / 5, 3: 1 - 2 / 3, 4: 0, 5: 0, 6: 0})


def test_lengths_ignore_white_space_and_empty_references():
    found = measured(("a b c d", "a b", "y"), ("abcde", "ab", "y"), ("", "abcd", "y"), ("abc", "", "y"))
    assert found.mean_length_ratio == pytest.approx((2 + 2.5 + 0) / 3)
    assert found.high_length_ratio == pytest.approx(np.percentile([2, 2.5, 0], 99))
    assert found.length_ratio == pytest.approx(12 / 8)
    assert (found.long, found.short) == pytest.approx((1 / 3, 1 / 3))


def test_empty_and_copied():
    found = measured(("  ", "a", "b"), ("New  York", "Neu York", "New York"), ("", "", ""), GOOD)
    assert (found.empty, found.copied) == (0.5, 0.25)


def test_good_output_raises_no_sign():
    found = measured(GOOD, GOOD)
    assert (found.length_ratio, found.mean_length_ratio, found.high_length_ratio) == (1, 1, 1)
    assert not any((found.oscillating, found.long, found.short, found.empty, found.copied, *found.repeat_rate.values()))


def test_round_trip_through_json():
    found = measured(GOOD, ("a a a a a a a", "b", "c"))
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    again = Overgeneration.from_json(content)
    assert again.to_json() == found.to_json()
    assert list(again.repeat_rate) == [2, 3, 4, 5, 6]


def test_without_any_reference_rates_are_numbers():
    json.dumps(measured(("a", "", "b")).to_json(), allow_nan=False)


TEXT = st.text("ab ", max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5))
def test_every_resampled_rate_is_a_function_of_sums(lines):
    found = measured(*lines)
    summed = found.statistics.sum(axis=0)
    assert found.oscillating == rate(summed, "oscillating")
    for name in RATES:
        value = float(rate(summed, name))
        assert value == rate(np.stack([summed, summed]), name)[1]
        assert value >= 0
        assert name == "length_ratio" or value <= 1


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=3), st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1))
def test_counts_of_joined_texts_are_joined(first, second):
    joined = summarise(np.concatenate([measured(*first).statistics, measured(*second).statistics]))
    assert joined.to_json() == measured(*first, *second).to_json()


def test_difference_of_a_rate_can_be_bootstrapped():
    repeating = [("a b c d " * 5, "a b", "w x y z")] * 5 + [GOOD] * 15
    found = paired_bootstrap(
        measured(*repeating).statistics, measured(*[GOOD] * 20).statistics, metric=resampled("oscillating")
    )
    assert found.metric == "oscillating"
    assert found.difference == pytest.approx(0.25)
    assert 0 < found.low < 0.25 < found.high


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="`rate` must be one of oscillating, length_ratio"):
        rate(np.zeros(len(COLUMNS)), "ratio")
    with pytest.raises(UsageError, match="`columns` must be sentences"):
        Overgeneration.from_json({"columns": ["sentences"], "statistics": []})
    with pytest.raises(UsageError, match="must have the same number of lines"):
        measure(["a"], ["a"], sources=[], source="eng_Latn", target="deu_Latn")
