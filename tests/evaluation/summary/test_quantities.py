"""Every number is a function of sums over sentences: plain loops over flags and sacrebleu say the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from nllb_prune.evaluation.detectors.flagging import Flags
from nllb_prune.evaluation.scores.surface import MEASURES
from nllb_prune.evaluation.summary.quantities import counts_of, family_of

HYPOTHESES = ["spiel spiel Musik", "das Wetter", "", "xyq"]
REFERENCES = ["spiel Musik", "das Wetter heute", "halt", ""]
Y, N = True, False


def booleans(*values):
    return np.array(values, np.bool_)


def flags(flagged, counted=None, *, references=None, from_reference=None):
    found = {name: booleans(*each) for name, each in flagged.items()}
    told = {name: booleans(*(counted or {}).get(name, [Y] * len(each))) for name, each in flagged.items()}
    pair = None if references is None else tuple(booleans(*each) for each in references)
    return Flags(found, told, pair, None if from_reference is None else booleans(*from_reference))


def values_of(counts, chosen=slice(None)):
    """Every number over some of the sentences, repeated as often as they are named."""
    found = {}
    for each in counts:
        assert not set(found) & set(each.measures)
        found |= {name: float(value) for name, value in each.values(each.columns[chosen].sum(axis=0)).items()}
    return found


@pytest.fixture(scope="module")
def result(make_result):
    return make_result(HYPOTHESES, REFERENCES, detections={"unlikely": [0.5, 1.5, 2.0, 4.0]})


@pytest.fixture(scope="module")
def values(result):
    return values_of(counts_of(result, flags({})))


def test_scores_are_those_of_the_corpus_on_any_sentences(result):
    counts = counts_of(result, flags({}))
    for chosen in ([0, 1, 2, 3], [1, 1, 0, 3], [2]):
        pair = [[lines[n] for n in chosen] for lines in (HYPOTHESES, REFERENCES)]
        found = values_of(counts, chosen)
        assert found["chrf"] == pytest.approx(CHRF(word_order=2).corpus_score(pair[0], [pair[1]]).score, abs=1e-9)
        assert found["bleu"] == pytest.approx(BLEU().corpus_score(pair[0], [pair[1]]).score, abs=1e-9)


def test_surface_and_means(result, values):
    assert {name: values[name] for name in MEASURES} == {name: result.surface.value(name) for name in MEASURES}
    assert values["mean_log_probability"] == pytest.approx(-2.0)
    # characters without spaces: 15/10, 9/14, 0/4; the fourth reference is empty and has no ratio
    assert values["mean_length_ratio"] == pytest.approx((15 / 10 + 9 / 14 + 0) / 3)
    assert set(values) == {"chrf", "bleu", *MEASURES, "mean_length_ratio", "mean_log_probability"}


def test_rates_are_of_what_is_counted(result):
    found = values_of(
        counts_of(result, flags({"script": [Y, N, N, N], "copy": [N, Y, N, Y]}, {"script": [Y, Y, N, Y]}))
    )
    assert found["script"] == pytest.approx(1 / 3)
    assert found["copy"] == 0.5
    assert found["any"] == 0.75  # of all sentences


def test_what_is_not_counted_anywhere_has_no_rate(result):
    found = values_of(counts_of(result, flags({"script": [N] * 4}, {"script": [N] * 4})))
    assert math.isnan(found["script"])
    assert found["any"] == 0.0


def test_off_target_is_raw_minus_the_rate_on_references(result):
    given = flags({"off-target": [Y, Y, N, N]}, {"off-target": [Y, Y, Y, N]}, references=([Y, N, N, N], [Y, Y, N, N]))
    found = values_of(counts_of(result, given))
    assert found["off-target raw"] == pytest.approx(2 / 3)
    assert found["off-target of references"] == pytest.approx(1 / 2)
    assert found["off-target"] == pytest.approx(2 / 3 - 1 / 2)
    assert found["any"] == 0.25  # the first reference is identified as another language too


def test_any_leaves_out_what_the_identifier_says_of_the_reference_too_unless_another_detector_flags_it(result):
    counted, references = {}, ([Y, Y, N, Y], [Y, Y, Y, Y])
    given = {"off-target": [Y, Y, Y, N], "copy": [Y, N, N, N]}
    assert values_of(counts_of(result, flags(given, counted, references=references)))["any"] == 0.5
    assert values_of(counts_of(result, flags(given, counted)))["any"] == 0.75
    given = {"script": [Y, Y, Y, N], "copy": [Y, N, N, N]}
    assert values_of(counts_of(result, flags(given, counted, references=references)))["any"] == 0.75


def test_off_target_needs_the_rate_on_references(result):
    found = values_of(counts_of(result, flags({"off-target": [Y, N, N, N]})))
    assert found["off-target raw"] == 0.25
    assert "off-target" not in found


def test_detached_and_what_is_far_from_the_reference_alone(result):
    given = flags({"detached": [N, Y, N, N]}, {"detached": [Y, Y, Y, N]}, from_reference=[Y, Y, N, N])
    found = values_of(counts_of(result, given))
    assert found["detached"] == pytest.approx(1 / 3)
    assert found["detached raw"] == pytest.approx(2 / 3)
    assert found["any"] == 0.25


def test_any_leaves_out_what_the_baseline_has_by_definition(result):
    found = values_of(counts_of(result, flags({"unlikely": [Y, N, Y, Y], "copy": [Y, Y, N, N]})))
    assert (found["any"], found["unlikely"], found["copy"]) == (0.5, 0.75, 0.5)
    assert "any" not in values_of(counts_of(result, flags({"unlikely": [Y, N, Y, Y]})))


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=4), st.lists(st.integers(0, 3), min_size=1)
)
def test_rates_of_any_resample_are_plain_counting(result, sentences, chosen):
    flagged, counted = zip(*((f and c, c) for f, c in sentences), strict=True)
    found = values_of(counts_of(result, flags({"script": flagged}, {"script": counted})), chosen)
    told = [flagged[n] for n in chosen if counted[n]]
    expected = sum(told) / len(told) if told else math.nan
    assert found["script"] == pytest.approx(expected, nan_ok=True)


def test_values_of_many_sums_at_once(result):
    counts = counts_of(result, flags({"script": [Y, N, N, N]}))
    weights = np.array([[1, 1, 1, 1], [0, 2, 1, 1], [4, 0, 0, 0]])
    for each in counts:
        together = each.values(weights @ each.columns)
        for row, drawn in enumerate(weights):
            alone = each.values(drawn @ each.columns)
            for name, found in together.items():
                assert found.shape == (3,)
                np.testing.assert_array_equal(found[row], alone[name])


def test_numbers_are_tested_with_their_like():
    families = {name: family_of(name) for name in ("chrf", "bleu", "spbleu", "length_ratio")}
    assert families == {name: name for name in families}
    for names, family in [
        (["over_2", "diversity_3", "repeat_rate_6", "mean_length_ratio", "mean_log_probability"], "surface"),
        (["off-target raw", "off-target of references", "detached raw"], "raw"),
        (["off-target", "detached", "any", "oscillation", "unlikely"], "rates"),
    ]:
        assert {family_of(name) for name in names} == {family}
