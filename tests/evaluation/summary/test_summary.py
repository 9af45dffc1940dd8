"""The summary and its file."""

import json
from dataclasses import replace

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.summary import Summary


@pytest.fixture
def path(summary, tmp_path):
    summary.save(tmp_path / "summary.json")
    return tmp_path / "summary.json"


def without_names(text):
    raise ValueError(f"{text} is not JSON")


def test_what_is_saved_can_be_loaded(summary, path):
    loaded = Summary.load(path)
    assert loaded == summary
    assert type(loaded["few"].examples[0].flagged) is tuple
    assert [c.name for c in loaded.configurations] == [c.name for c in summary.configurations]
    loaded.save(path.with_name("again.json"))
    assert path.with_name("again.json").read_bytes() == path.read_bytes()


def test_the_file_is_json_without_nan(path):
    content = json.loads(path.read_text(), parse_constant=without_names)
    assert (content["format"], content["version"]) == ("nllb-prune/evaluation", 2)
    assert content["tool"].startswith("nllb-prune ")


def test_parts_are_found_by_name(summary):
    few = summary["few"]
    assert few.name == "few"
    assert few.group() == few.group("all")
    assert few.figure("chrf") == few.group("all").figures["chrf"]
    assert few.figure("chrf", "into English").value != few.figure("chrf").value
    assert summary.metrics == ("chrf", "bleu", "spbleu")
    assert set(summary.detectors) >= {"oscillation", "off-target", "detached", "unlikely"}
    assert not {"any", "off-target raw", "chrf"} & set(summary.detectors)


def test_metrics_are_those_scored(summary):
    def without_spbleu(group):
        return replace(group, figures={name: each for name, each in group.figures.items() if name != "spbleu"})

    first = summary.configurations[0]
    first = replace(first, groups=tuple(without_spbleu(group) for group in first.groups))
    assert replace(summary, configurations=(first,)).metrics == ("chrf", "bleu")


def test_the_worst_direction_is_that_of_the_largest_loss(summary):
    few = summary["few"]
    values = {direction.direction: direction.changes["bleu"].value for direction in few.directions}
    assert few.worst("bleu").direction == min(values, key=values.get)
    assert few.worst().changes["chrf"].value == min(d.changes["chrf"].value for d in few.directions)
    assert summary["full"].worst() is None


def test_unknown_parts_are_refused(summary):
    with pytest.raises(UsageError, match="`configuration` must be one of full, every, half, few, but is small instead"):
        summary["small"]
    with pytest.raises(UsageError, match=r"`group` must be one of all, out of English, .*, but is low → low instead"):
        summary["few"].group("low → low")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [content], r"must be the summary of an evaluation \(`nllb-prune/evaluation`\), but is not"),
        (
            lambda content: content | {"format": "nllb-prune/masks"},
            r"must be the summary of an evaluation \(`nllb-prune",
        ),
        (lambda content: content | {"version": 1}, "must have format version 2, but has 1 instead. Evaluate again: "),
        (lambda content: content | {"configurations": [{}]}, "must be the summary of an evaluation, but is damaged"),
        (lambda content: content | {"limits": {"mean_loss": [1]}}, "but is damaged"),
        (lambda content: {k: v for k, v in content.items() if k != "beams"}, "but is damaged .KeyError.'beams'"),
    ],
)
def test_other_files_are_refused(path, change, message):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UsageError, match=message) as found:
        Summary.load(path)
    assert "\n" not in str(found.value)


def test_a_missing_file_and_one_of_something_else_are_refused(tmp_path):
    with pytest.raises(UsageError, match="must be the summary of an evaluation, but there is no such file"):
        Summary.load(tmp_path / "none.json")
    (tmp_path / "text").write_text("chrF++ 50")
    with pytest.raises(UsageError, match="must be the summary of an evaluation, but is not valid JSON"):
        Summary.load(tmp_path / "text")
