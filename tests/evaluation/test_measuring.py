"""What is measured of the outputs of a direction, and what results depend on beside their outputs."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

from nllb_prune.evaluation import measuring as module
from nllb_prune.evaluation.detectors import Detector, Outputs
from nllb_prune.evaluation.detectors.identification import Py3LangId
from nllb_prune.evaluation.detectors.off_target import OffTarget
from nllb_prune.evaluation.measuring import SCORES_ONLY, Measuring, usual_measuring
from nllb_prune.evaluation.scores.surface import measure
from nllb_prune.tokenization import known_languages

LANGUAGES = ("eng_Latn", "deu_Latn", "spa_Latn", "zho_Hans")
SOURCES = ["play some music", "what is the weather like today", "turn off the light"]
REFERENCES = ["spiel etwas Musik", "wie ist das Wetter heute", "schalte das Licht aus"]
HYPOTHESES = ["spiel Musik", "wie ist das Wetter heute heute heute heute", "turn off the light"]


@dataclass(frozen=True)
class CountedIdentifier:
    """Identifies as py3langid does, and notes what it was asked."""

    asked: list = field(default_factory=list)
    name: str = "counted"
    signature: str = "counted-1"

    def known(self, languages):
        return Py3LangId().known(languages)

    def identify(self, texts, languages):
        self.asked.append(tuple(texts))
        return Py3LangId().identify(texts, languages)


def outputs(hypotheses=HYPOTHESES, *, target="deu_Latn", references=REFERENCES, **fields):
    return Outputs(
        source="eng_Latn", target=target, sources=SOURCES, outputs=hypotheses, references=references, **fields
    )


@pytest.fixture
def identifier():
    return CountedIdentifier()


@pytest.fixture
def identifying(identifier):
    return Measuring(detectors=(Detector(OffTarget(identifier=identifier, languages=LANGUAGES), 0.5),))


def test_scores_and_surface_are_those_of_the_outputs():
    found = SCORES_ONLY.measure(outputs())
    assert found.scores["chrf"].value == pytest.approx(
        CHRF(word_order=2).corpus_score(HYPOTHESES, [REFERENCES]).score, abs=1e-9
    )
    assert found.scores["bleu"].value == pytest.approx(BLEU().corpus_score(HYPOTHESES, [REFERENCES]).score, abs=1e-9)
    np.testing.assert_array_equal(
        found.surface.statistics, measure(HYPOTHESES, REFERENCES, target="deu_Latn").statistics
    )
    assert (found.detections, found.on_references) == ({}, {})
    assert list(found.scores) == ["chrf", "bleu"]


def test_spbleu_is_scored_with_a_model(measuring):
    assert list(measuring.measure(outputs()).scores) == ["chrf", "bleu", "spbleu"]


def test_bleu_is_of_the_target():
    chinese = outputs(["播放音乐"] * 3, target="zho_Hans", references=["播放一些音乐"] * 3)
    assert "|tok:zh|" in SCORES_ONLY.measure(chinese).scores["bleu"].signature


def test_detections_are_the_values_of_the_detectors(measuring):
    given = outputs(mean_log_probabilities=np.array([-0.5, -1.0, -2.0]), ended=np.array([True, True, False]))
    found = measuring.measure(given)
    assert set(found.detections) == {detector.name for detector in measuring.detectors}
    for detector in measuring.detectors:
        np.testing.assert_array_equal(found.detections[detector.name], detector.values(given))
    assert found.detections["oscillation"].tolist() == [0.0, 0.0, 0.0]
    assert found.detections["unlikely"].tolist() == [0.5, 1.0, 2.0]
    assert found.detections["unfinished"].tolist() == [0.0, 0.0, 1.0]
    assert found.detections["copy"].tolist() == [0.0, 0.0, 1.0]


def test_detectors_that_lack_a_field_are_left_out(measuring):
    found = measuring.measure(outputs())
    assert {detector.name for detector in measuring.detectors} - set(found.detections) == {"unlikely", "unfinished"}


def test_off_target_is_measured_on_the_references_too(identifying):
    found = identifying.measure(outputs())
    (detector,) = identifying.detectors
    np.testing.assert_array_equal(found.on_references["off-target"], detector.values(outputs(REFERENCES)))
    assert (found.on_references["off-target"] < 0.5).all()
    assert found.detections["off-target"][2] > 0.5


def test_references_are_identified_once_for_all_sources_and_configurations(identifying, identifier):
    first = identifying.measure(outputs())
    other = Outputs(source="spa_Latn", target="deu_Latn", sources=["a"] * 3, outputs=SOURCES, references=REFERENCES)
    second = identifying.measure(other)
    assert identifier.asked.count(tuple(REFERENCES)) == 1
    np.testing.assert_array_equal(first.on_references["off-target"], second.on_references["off-target"])


@pytest.mark.parametrize(
    "other",
    [{"references": [*REFERENCES[:2], "schalte das Licht ein"]}, {"target": "spa_Latn"}, {"references": SOURCES}],
)
def test_other_references_and_targets_are_identified_anew(identifying, identifier, other):
    identifying.measure(outputs())
    found = identifying.measure(outputs(**other))
    fresh = Measuring(detectors=identifying.detectors).measure(outputs(**other))
    np.testing.assert_array_equal(found.on_references["off-target"], fresh.on_references["off-target"])


def test_settings_name_all_that_values_depend_on(measuring):
    assert measuring.settings(("eng_Latn", "zho_Hans")) == {
        "bleu": "zh",
        "spbleu": measuring.spbleu.signature,
        "sacrebleu": sacrebleu.__version__,
        "fidelity": True,
        **{f"detector {each.name}": each.values_signature for each in measuring.detectors},
    }
    assert SCORES_ONLY.settings(("zho_Hans", "deu_Latn"))["bleu"] == "13a"


def test_a_threshold_is_no_setting_of_values(measuring):
    lower = replace(measuring, detectors=tuple(replace(each, threshold=0.1) for each in measuring.detectors))
    assert lower.settings(("eng_Latn", "deu_Latn")) == measuring.settings(("eng_Latn", "deu_Latn"))


def test_usual_measures(mini_tokenizer, monkeypatch, measuring):
    monkeypatch.setattr(module, "find_spbleu", lambda: measuring.spbleu)
    usual = usual_measuring(mini_tokenizer)
    assert usual == measuring
    assert usual_measuring(mini_tokenizer, fidelity=False) == replace(usual, fidelity=False)
    (off_target,) = [each.measure for each in usual.detectors if each.name == "off-target"]
    assert off_target.languages == known_languages(mini_tokenizer)
    assert len(off_target.languages) == 10
