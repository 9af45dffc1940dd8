import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import (
    THRESHOLDS,
    Detector,
    Outputs,
    can_run,
    flags,
    missing,
    threshold_at,
    usual_detectors,
)
from nllb_prune.evaluation.detectors.identification import Py3LangId
from nllb_prune.evaluation.detectors.repetition import Oscillation

OUTPUTS = Outputs(source="eng_Latn", target="deu_Latn", sources=["one", "two"], outputs=["eins", "zwei"])
USUAL = usual_detectors(identifier=Py3LangId(), languages=["eng_Latn", "deu_Latn"])


def test_flagged_from_the_threshold_on_and_never_where_it_cannot_tell():
    detector = Detector(Oscillation(), 2.0)
    assert flags(detector, np.array([1.9, 2.0, 2.1, np.nan])).tolist() == [False, True, True, False]


def test_signatures():
    detector = Detector(Oscillation(order=3), 2.5)
    values = f"oscillation|n:3|units:words,characters-where-unspaced|version:{__version__}"
    assert detector.values_signature == values
    assert detector.signature == values.replace("|version", "|t:2.5|version")


def test_thresholds_that_are_close_have_signatures_of_their_own():
    near, far = (Detector(Oscillation(), threshold).signature for threshold in (1.9123456789, 1.9123456788))
    assert "|t:1.9123456789|" in near
    assert near != far


def test_signatures_of_the_usual_ones_are_distinct_and_hold_the_threshold():
    assert [each.name for each in USUAL] == list(THRESHOLDS)
    for each in USUAL:
        assert each.signature.startswith(f"{each.name}|")
        assert f"|t:{each.threshold:g}|" in each.signature
        assert "|t:" not in each.values_signature
        assert each.threshold == THRESHOLDS[each.name]


def test_other_thresholds():
    changed = usual_detectors(identifier=None, languages=(), thresholds={"script": 0.75})
    assert {each.name: each.threshold for each in changed}["script"] == 0.75
    assert "off-target" not in {each.name for each in changed}
    with pytest.raises(UsageError, match=r"`thresholds` must be of oscillation, .* but one is of `scripts` instead"):
        usual_detectors(identifier=None, languages=(), thresholds={"scripts": 0.75})


def test_what_is_missing():
    lacking = {each.name: missing(each, OUTPUTS) for each in USUAL if not can_run(each, OUTPUTS)}
    assert lacking == {
        "detached": ("references",),
        "unlikely": ("mean_log_probabilities",),
        "unfinished": ("ended",),
    }


@pytest.mark.parametrize("name", ["detached", "unlikely", "unfinished"])
def test_values_without_what_is_needed_are_refused(name):
    detector = next(each for each in USUAL if each.name == name)
    with pytest.raises(UsageError, match=f"`{missing(detector, OUTPUTS)[0]}` must be given"):
        detector.values(OUTPUTS)


def test_outputs_must_be_aligned():
    with pytest.raises(UsageError, match="`sources` and `outputs` and `references` must have the same number of lines"):
        Outputs(source="eng_Latn", target="deu_Latn", sources=["a"], outputs=["b"], references=[])


SENTENCE = st.text("ab cд中1. ", max_size=12)


@settings(deadline=None)  # the first example loads the identifier
@given(st.lists(st.tuples(SENTENCE, SENTENCE, SENTENCE), min_size=1, max_size=6))
def test_a_value_depends_on_its_own_sentence_only(rows):
    def outputs(some):
        sources, texts, references = zip(*some, strict=True)
        return Outputs(
            source="eng_Latn",
            target="deu_Latn",
            sources=sources,
            outputs=texts,
            references=references,
            full_outputs=references,
            mean_log_probabilities=-np.ones(len(some)),
            ended=np.ones(len(some), bool),
        )

    for detector in USUAL:
        together = detector.values(outputs(rows))
        alone = [detector.values(outputs([row]))[0] for row in rows]
        np.testing.assert_allclose(together, alone, rtol=1e-12)
        assert together.dtype == np.float64


@given(
    st.lists(st.one_of(st.floats(-5, 5), st.just(float("nan"))), min_size=1, max_size=60).filter(
        lambda values: not all(map(np.isnan, values))
    ),
    st.floats(0, 1),
)
def test_threshold_at_flags_no_more_than_its_share_and_cannot_be_lower(values, rate):
    good = np.array(values)
    told = good[~np.isnan(good)]
    threshold = threshold_at(good, rate=rate)
    assert (told >= threshold).mean() <= rate + 1e-9
    if (below := told[told < threshold]).size:
        assert (told >= below.max()).mean() > rate


def test_threshold_at_by_hand():
    good = np.arange(100.0)
    assert 97 < threshold_at(good, rate=0.02) <= 98
    assert flags(Detector(Oscillation(), threshold_at(good, rate=0.02)), good).sum() == 2
    with pytest.raises(UsageError, match="`rate` must be a share from 0 to 1 of one value or more, but is 2 of 1"):
        threshold_at(np.zeros(1), rate=2)
    with pytest.raises(UsageError, match="of 0 instead"):
        threshold_at(np.full(3, np.nan), rate=0.1)
