"""Hand-made cases of every kind of fault in ten languages: each kind is caught by the detector that is named for it."""

from pathlib import Path

import numpy as np
import pytest

from nllb_prune.evaluation.detectors import flags, usual_detectors
from nllb_prune.evaluation.detectors.annotated import Annotated
from nllb_prune.evaluation.detectors.identification import Py3LangId
from nllb_prune.evaluation.detectors.judgement import ANY, judge
from nllb_prune.evaluation.detectors.labelled import roc_auc
from nllb_prune.languages import language_set

MORE = ("jpn_Jpan", "mar_Deva", "pes_Arab", "ukr_Cyrl")  # languages that wrong outputs are in
CAUGHT_BY = {
    "oscillation": ("oscillation", 1.0),
    "doubled": ("repetition", 1.0),
    "wrong-language": ("off-target", 1.0),
    "wrong-script": ("script", 1.0),
    "truncated": ("short", 0.9),
    "copy": ("copy", 1.0),
    "empty": ("empty", 1.0),
    "detached": ("detached", 0.3),  # character n-grams of unrelated short sentences agree by chance
}


@pytest.fixture(scope="module")
def cases():
    return Annotated.read(Path(__file__).parent / "cases.tsv")


@pytest.fixture(scope="module")
def detectors():
    return usual_detectors(identifier=Py3LangId(), languages=(*language_set("mini").codes, *MORE))


@pytest.fixture(scope="module")
def values(cases, detectors):
    return cases.values(detectors)


def test_there_are_cases_of_every_kind_in_every_language(cases):
    kinds = cases.kinds("label")
    assert set(kinds) == {"", *CAUGHT_BY}
    for target in language_set("mini").codes:
        here = [kind for kind, direction in zip(kinds, cases.directions, strict=True) if direction[1] == target]
        assert all(here.count(kind) >= 2 for kind in CAUGHT_BY), target


@pytest.mark.parametrize("kind", CAUGHT_BY)
def test_faults_are_caught(cases, detectors, values, kind):
    name, share = CAUGHT_BY[kind]
    found = judge(detectors, values, {"label": cases.kinds("label")}).labels["label"]
    assert found[name].kinds[kind] >= share
    assert found[ANY].kinds[kind] >= share


def test_good_translations_are_not_flagged(cases, detectors, values):
    good = np.array([not kind for kind in cases.kinds("label")])
    for detector in detectors:
        if detector.name in values and detector.name != "off-target":
            assert not flags(detector, values[detector.name])[good].any(), detector.name
    off_target = next(each for each in detectors if each.name == "off-target")
    assert flags(off_target, values["off-target"])[good].mean() <= 0.04


def test_detached_outputs_are_further_away_than_good_ones(cases, values):
    kinds = cases.kinds("label")
    chosen = np.array([kind in ("", "detached") for kind in kinds])
    faulty = np.array([kind == "detached" for kind in kinds])
    assert roc_auc(values["detached"][chosen], faulty[chosen]) > 0.99
