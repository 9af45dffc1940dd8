"""From values to flags: what cannot be told is not counted, and what is far from the reference is looked at again."""

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import Detector, Outputs
from nllb_prune.evaluation.detectors.detached import Detached
from nllb_prune.evaluation.detectors.flagging import fitted, flag
from nllb_prune.evaluation.detectors.identification import Py3LangId
from nllb_prune.evaluation.detectors.off_target import OffTarget
from nllb_prune.evaluation.detectors.repetition import Oscillation
from nllb_prune.evaluation.detectors.script import Script
from nllb_prune.evaluation.detectors.search import Unlikely

NAN = float("nan")
SCRIPT, OSCILLATION, UNLIKELY = Detector(Script(), 0.5), Detector(Oscillation(), 2.0), Detector(Unlikely(), 1.9)
OFF_TARGET = Detector(OffTarget(identifier=Py3LangId(), languages=("eng_Latn", "deu_Latn")), 0.5)
DETACHED = Detector(Detached(), 90.0)
SOURCES = ["play music", "the weather", "stop", "the light"]
REFERENCES = ["spiel Musik", "das Wetter", "halt", "das Licht"]
FAR = "xyq vvv"


@pytest.fixture
def text(text_of, tmp_path):
    return text_of(tmp_path / "text", eng_Latn=SOURCES, deu_Latn=REFERENCES)


def test_flags_begin_at_the_threshold_and_nan_is_neither_flagged_nor_counted(make_result, text):
    detections = {"script": [0.5, np.nextafter(0.5, 0), NAN, 1.0], "oscillation": [2, 1, 3, -1]}
    result = make_result(REFERENCES, REFERENCES, detections=detections)
    found = flag(result, [OSCILLATION, SCRIPT], baseline=result, text=text)
    assert found.flagged["script"].tolist() == [True, False, False, True]
    assert found.counted["script"].tolist() == [True, True, False, True]
    assert found.flagged["oscillation"].tolist() == [True, False, True, False]
    assert found.counted["oscillation"].all()
    assert (found.references, found.from_reference) == (None, None)


def test_detectors_without_values_have_no_flags(make_result, text):
    result = make_result(REFERENCES, REFERENCES, detections={"script": [0, 0, 0, 0]})
    assert list(flag(result, [OSCILLATION, SCRIPT, DETACHED], baseline=result, text=text).flagged) == ["script"]


def test_values_of_other_sentences_are_refused(make_result, text):
    result = make_result(REFERENCES, REFERENCES, detections={"script": [0, 0, 0]})
    with pytest.raises(UsageError, match="`script` must have 4 values, but has 3 instead"):
        flag(result, [SCRIPT], baseline=result, text=text)


def test_references_that_look_off_target_are_flagged_as_outputs_are(make_result, text):
    values = {"off-target": [0.9, 0.9, 0.1, NAN]}
    result = make_result(REFERENCES, REFERENCES, detections=values, on_references={"off-target": [0.5, NAN, 0.2, 0.4]})
    flagged, counted = flag(result, [OFF_TARGET], baseline=result, text=text).references
    assert flagged.tolist() == [True, False, False, False]
    assert counted.tolist() == [True, False, True, True]
    assert flag(result, [], baseline=result, text=text).references is None


@pytest.mark.parametrize(
    ("output", "of_baseline", "detached"),
    [
        (FAR, REFERENCES[1], True),  # far from both
        (FAR, FAR, False),  # far from the reference, as the baseline's output is
        (REFERENCES[1], FAR, False),  # the reference itself
        (FAR, "", True),
    ],
)
def test_detached_is_far_from_the_reference_and_from_the_baseline(make_result, text, output, of_baseline, detached):
    outputs = [REFERENCES[0], output, *REFERENCES[2:]]
    values = Detached().values(
        Outputs(source="eng_Latn", target="deu_Latn", sources=SOURCES, outputs=outputs, references=REFERENCES)
    )
    result = make_result(outputs, REFERENCES, configuration="few", detections={"detached": values})
    baseline = make_result([REFERENCES[0], of_baseline, *REFERENCES[2:]], REFERENCES)
    found = flag(result, [DETACHED], baseline=baseline, text=text)
    assert found.from_reference.tolist() == [False, output == FAR, False, False]
    assert found.flagged["detached"].tolist() == [False, detached, False, False]
    assert found.counted["detached"].all()


def test_a_stricter_threshold_holds_for_both_looks(make_result, text):
    outputs = ["das Wedder", *REFERENCES[1:]]
    result = make_result(outputs, REFERENCES, detections={"detached": [95.0, 0, 0, 0]})
    near = make_result(["das Wetter", *REFERENCES[1:]], REFERENCES)
    assert not flag(result, [DETACHED], baseline=near, text=text).flagged["detached"].any()
    strict = Detector(Detached(), 20.0)
    assert flag(result, [strict], baseline=near, text=text).flagged["detached"].tolist() == [True, False, False, False]


def test_unlikely_is_fitted_to_a_percentile_of_good_outputs(make_result):
    drawn = np.random.default_rng(0).exponential(size=400)
    halves = [make_result(["a"] * 200, ["a"] * 200, detections={"unlikely": part}) for part in np.split(drawn, 2)]
    script, unlikely = fitted([SCRIPT, UNLIKELY], iter(halves))
    assert script == SCRIPT
    assert (drawn >= unlikely.threshold).sum() == 4
    assert unlikely.threshold > np.sort(drawn)[-5]
    assert unlikely.measure == UNLIKELY.measure


def test_nothing_is_fitted_without_values(make_result):
    result = make_result(["a"], ["a"], detections={"script": [0.0]})
    assert fitted([SCRIPT, UNLIKELY], [result]) == (SCRIPT, UNLIKELY)
    assert fitted([SCRIPT], []) == (SCRIPT,)
