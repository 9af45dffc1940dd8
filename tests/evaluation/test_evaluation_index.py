"""The index of an evaluation: read back as it was written, and never with results of another run."""

import gzip
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.evaluate import evaluate
from nllb_prune.evaluation.evaluation import Evaluation, plan_facts, result_path
from nllb_prune.evaluation.measuring import SCORES_ONLY
from nllb_prune.evaluation.results import RESULT_FILES
from nllb_prune.evaluation.summary.summarise import summarise

PAIR = ("eng_Latn", "deu_Latn")


@pytest.fixture
def saved(evaluation, tmp_path):
    """A copy of the evaluation in a folder of its own, with its index."""
    shutil.copytree(evaluation.folder, tmp_path / "scores")
    own = replace(evaluation, folder=tmp_path / "scores")
    own.save()
    return own


def test_what_is_saved_can_be_opened(saved):
    opened = Evaluation.open(saved.folder)
    assert opened == saved
    assert opened.configurations == ("full", "every", "half", "few")
    assert opened.result("few", PAIR).to_json() == saved.result("few", PAIR).to_json()


def test_a_moved_folder_can_be_opened(saved, tmp_path):
    moved = tmp_path / "elsewhere"
    saved.folder.rename(moved)
    assert Evaluation.open(moved).result("half", PAIR).configuration == "half"
    assert str(tmp_path) not in (moved / "evaluation.json").read_text()


def test_equal_evaluations_are_equal_bytes(saved):
    content = (saved.folder / "evaluation.json").read_bytes()
    Evaluation.open(saved.folder).save()
    assert (saved.folder / "evaluation.json").read_bytes() == content


def test_results_of_a_direction_and_of_a_configuration(saved, directions):
    assert {name: r.configuration for name, r in saved.results(PAIR).items()} == {n: n for n in saved.configurations}
    found = list(saved.of_configuration("half"))
    assert [(each.source, each.target) for each in found] == list(directions)
    assert {each.configuration for each in found} == {"half"}


def test_statistics_by_direction(saved, directions):
    found = saved.statistics("few", "bleu")
    assert list(found) == ["-".join(direction) for direction in directions]
    np.testing.assert_array_equal(found["-".join(PAIR)], saved.result("few", PAIR).scores["bleu"].statistics)


def test_plans(saved, random_masks):
    masks = random_masks(8, seed=7)
    assert saved.plans["full"] == plan_facts(None) == {}
    assert saved.plans["few"] == plan_facts(masks)
    planned = replace(masks, plan={"criterion": "importance", "budget": {"ratio": [3, 1]}, "counts": {"decoder": 8}})
    assert plan_facts(planned) == {
        "granularity": "global",
        "signature": planned.signature,
        "criterion": "importance",
        "ratio": [3, 1],
        "kept_experts": None,
        "counts": {"decoder": 8},
    }


def test_results_of_another_run_are_refused(saved, mini, mini_tokenizer, test_text, detectors):
    options = {"folder": saved.folder, "measuring": SCORES_ONLY, "sentences": 3}
    evaluate(mini, mini_tokenizer, test_text, [PAIR], {"full": None}, **options)
    opened = Evaluation.open(saved.folder)
    with pytest.raises(UsageError, match=r"`.*deu_Latn.jsonl.gz` must be of this evaluation, but was made with other"):
        opened.result("full", PAIR)
    with pytest.raises(UsageError, match="Evaluate again"):
        summarise(opened, test_text, detectors=detectors)
    assert opened.result("half", PAIR).sentences == 24


@pytest.mark.parametrize(
    ("configuration", "direction"),
    [("few", PAIR), ("half", PAIR[::-1]), ("half", ("eng_Latn", "zho_Hans")), ("half", ("hin_Deva", "deu_Latn"))],
)
def test_a_result_of_something_else_under_this_name_is_refused(saved, configuration, direction):
    """Its settings are those that the name asks for."""
    path = result_path(saved.folder, "half", "-".join(PAIR))
    result, header = RESULT_FILES.unpack(path.read_bytes())
    path.write_bytes(RESULT_FILES.pack(saved.result(configuration, direction), header))
    with pytest.raises(UsageError, match=r"`.*half/eng_Latn-deu_Latn.jsonl.gz` must be what its name says, but is of"):
        saved.result("half", PAIR)
    path.write_bytes(RESULT_FILES.pack(result, header))
    assert saved.result("half", PAIR).to_json() == result.to_json()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b"{}"),
        lambda path: path.write_bytes(gzip.compress(b'{"digest": "0"}\n{}\n')),
    ],
)
def test_missing_and_broken_results_are_refused(saved, damage):
    damage(result_path(saved.folder, "half", "-".join(PAIR)))
    with pytest.raises(UsageError, match=r"must be a result, but cannot be read .* Evaluate again\.") as found:
        saved.result("half", PAIR)
    assert "\n" not in str(found.value)


def test_what_was_not_evaluated_is_refused(saved):
    with pytest.raises(UsageError, match="`configuration` must be one of full, every, half, few, but is small instead"):
        saved.result("small", PAIR)
    with pytest.raises(UsageError, match=r"`direction` must be one of .*, but is eng_Latn-tur_Latn instead"):
        saved.result("full", ("eng_Latn", "tur_Latn"))


def test_two_evaluations_are_joined(evaluation):
    full = replace(evaluation, digests={"full": evaluation.digests["full"]}, plans={"full": {}})
    few = replace(evaluation, digests={"few": evaluation.digests["few"]}, plans={"few": evaluation.plans["few"]})
    joined = few.joined(full)
    assert joined.configurations == ("few", "full")
    assert set(joined.plans) == {"few", "full"}
    assert list(joined.results(PAIR)) == ["few", "full"]


def test_only_evaluations_of_the_same_are_joined(evaluation, tmp_path):
    for other in ({"beams": 4}, {"folder": tmp_path}, {"directions": evaluation.directions[:1]}):
        with pytest.raises(UsageError, match="`other` must be of the same folder, directions and beams"):
            evaluation.joined(replace(evaluation, **other))


def test_only_an_index_can_be_opened(saved):
    path = saved.folder / "evaluation.json"
    content = json.loads(path.read_text())
    wrong = {
        "must be the index of an evaluation, but is damaged": [
            {name: value for name, value in content.items() if name != "digests"},
            {**content, "directions": [["eng_Latn"]]},
            {**content, "digests": []},
        ],
        r"must be the index of an evaluation \(`nllb-prune/evaluation-index` 1\), but is not": [
            [],
            {**content, "version": 0},
            {**content, "format": "nllb-prune/masks"},
        ],
    }
    for message, contents in wrong.items():
        for each in contents:
            path.write_text(json.dumps(each))
            with pytest.raises(UsageError, match=message):
                Evaluation.open(saved.folder)
    path.write_text("{")
    with pytest.raises(UsageError, match="must be the index of an evaluation, but is not valid JSON"):
        Evaluation.open(saved.folder)
    path.unlink()
    with pytest.raises(UsageError, match="must be the index of an evaluation, but there is no such file"):
        Evaluation.open(saved.folder)
