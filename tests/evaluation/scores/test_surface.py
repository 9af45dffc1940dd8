import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.surface import COLUMNS, MEASURES, Surface, measure


def one(hypothesis, reference="a b c d", target="deu_Latn"):
    return measure([hypothesis], [reference], target=target)


def test_length_ratio_counts_characters_without_spaces():
    surface = measure(["ab  cd", "e"], ["abcd", "e f g h"], target="deu_Latn")
    assert surface.value("length_ratio") == 5 / 8
    assert surface.length_ratios[0].tolist() == [1.0, 0.25]


def test_high_length_ratio_is_the_99th_percentile():
    surface = measure(["a" * n for n in range(1, 102)], ["a"] * 101, target="deu_Latn")
    assert surface.high_length_ratio == 100


@pytest.mark.parametrize(
    ("hypothesis", "long", "short"),
    [("a" * 9, 1, 0), ("a" * 8, 0, 0), ("aa", 0, 0), ("a", 0, 1), ("", 0, 1)],
)
def test_over_twice_and_under_half(hypothesis, long, short):
    surface = one(hypothesis, "aaaa")
    assert (surface.value("over_2"), surface.value("under_half")) == (long, short)


def test_an_empty_reference_is_not_compared():
    surface = measure(["some text", "a"], ["", "a"], target="deu_Latn")
    assert surface.value("over_2") == 0
    assert [each.tolist() for each in surface.length_ratios] == [[0.0, 1.0], [False, True]]
    assert measure(["x"], [""], target="deu_Latn").value("length_ratio") == 0


# a b a b a: bigrams ab ba ab ba -> 2 of 4; trigrams aba bab aba -> 2 of 3; 4-grams abab baba -> 2 of 2
@pytest.mark.parametrize(("order", "repeat"), [(2, 0.5), (3, 1 / 3), (4, 0.0), (5, 0.0), (6, 0.0)])
def test_repeat_rate_by_hand(order, repeat):
    assert one("a b a b a").value(f"repeat_rate_{order}") == pytest.approx(repeat)


def test_diversity_is_the_rest_of_the_repeat_rate():
    surface = one("a b a b a")
    assert [surface.value(f"diversity_{n}") for n in (2, 3, 4)] == pytest.approx([0.5, 2 / 3, 1.0])


def test_scripts_without_spaces_are_counted_by_character():
    assert one("好好好", "好", target="zho_Hans").value("repeat_rate_2") == 0.5
    assert one("好好好", "好", target="deu_Latn").value("repeat_rate_2") == 0.0


def test_repetition_is_within_an_output():
    assert measure(["a b c d e"] * 9, ["a"] * 9, target="deu_Latn").value("repeat_rate_4") == 0


words = st.lists(st.sampled_from(["ab", "cd", "efg", "hij"]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_every_measure_is_of_summed_counts(pairs):
    hypotheses, references = zip(*pairs, strict=True)
    whole = measure(hypotheses, references, target="eng_Latn")
    parts = [measure([h], [r], target="eng_Latn").statistics.sum(axis=0) for h, r in pairs]
    summed = np.sum(parts, axis=0).astype(np.float64)
    assert {name: each(summed) for name, each in MEASURES.items()} == {name: whole.value(name) for name in MEASURES}


def test_measures_of_many_resamples_at_once():
    counts = measure(["a b a b", "c"], ["a", "c"], target="eng_Latn").statistics.astype(np.float64)
    for name, each in MEASURES.items():
        assert each(counts).tolist() == [float(each(row)) for row in counts], name


def test_survives_its_file():
    surface = one("a b a b a")
    again = Surface.from_json(surface.to_json())
    assert again.statistics.tolist() == surface.statistics.tolist()


@pytest.mark.parametrize("content", [{}, {"columns": ["sentences"], "statistics": []}, {"columns": list(COLUMNS)}])
def test_refuses_other_counts(content):
    with pytest.raises(UsageError, match="must be sentences, characters"):
        Surface.from_json(content)


def test_refuses_another_shape():
    with pytest.raises(UsageError, match="columns, but has shape"):
        Surface(np.zeros((2, 3), np.int64))
