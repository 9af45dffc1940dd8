import csv
import math

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import Detector, flags
from nllb_prune.evaluation.detectors.annotated import Annotated
from nllb_prune.evaluation.detectors.detached import Detached
from nllb_prune.evaluation.detectors.judgement import ANY, judge
from nllb_prune.evaluation.detectors.plain import Copy, Empty
from nllb_prune.evaluation.detectors.script import Script
from nllb_prune.evaluation.detectors.search import Unfinished, Unlikely

ROWS = [
    ["source", "output", "source_language", "target_language", "label", "label_kind", "score_x"],
    ["hello", "hello", "eng_Latn", "de", "1", "copy", "0.1"],
    ["hello", "привет", "eng_Latn", "rus_Cyrl", "0", "OK", "0.8"],
    ["hello", "", "eng_Latn", "deu_Latn", "1", "empty", "0.5"],
    ['say "hi"', "bonjour", "eng_Latn", "rus_Cyrl", "", "script", "0.5"],
]
DETECTORS = [Detector(Copy(), 1.0), Detector(Empty(), 1.0), Detector(Script(), 0.5)]


def write(path, rows=ROWS):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def annotated(tmp_path):
    return Annotated.read(write(tmp_path / "table.tsv"))


def test_rows_are_read_with_their_directions(annotated):
    assert annotated.directions == (
        ("eng_Latn", "deu_Latn"),
        ("eng_Latn", "rus_Cyrl"),
        ("eng_Latn", "deu_Latn"),
        ("eng_Latn", "rus_Cyrl"),
    )
    assert annotated.rows[3]["source"] == 'say "hi"'
    assert annotated.labels == ("label", "label_kind")
    assert annotated.kinds("label") == ["1", "", "1", ""]
    assert annotated.kinds("label_kind") == ["copy", "", "empty", "script"]


def test_languages_given_once_win_over_columns(tmp_path):
    path = write(tmp_path / "table.tsv")
    assert set(Annotated.read(path, source="fr", target="es").directions) == {("fra_Latn", "spa_Latn")}


def test_values_come_back_in_the_order_of_the_rows(annotated):
    values = annotated.values(DETECTORS)
    np.testing.assert_array_equal(values["copy"], [1, 0, 0, 0])
    np.testing.assert_array_equal(values["empty"], [0, 0, 1, 0])
    np.testing.assert_array_equal(values["script"], [0, 0, np.nan, 1])
    np.testing.assert_array_equal(annotated.scores()["score_x"], [-0.1, -0.8, -0.5, -0.5])


def test_optional_columns(tmp_path):
    header = ["source", "output", "reference", "full_output", "log_probability", "ended"]
    rows = [header, ["a", "ab", "xy", "ab", "-0.5", "1"], ["a", "ab", "xy", "xy", "", "0"]]
    annotated = Annotated.read(write(tmp_path / "t.tsv", rows), source="en", target="de")
    detectors = [Detector(each, 1.0) for each in (Detached(), Unlikely(), Unfinished())]
    values = annotated.values(detectors)
    np.testing.assert_array_equal(values["detached"], [0, 100])
    np.testing.assert_array_equal(values["unlikely"], [0.5, np.nan])
    np.testing.assert_array_equal(values["unfinished"], [0, 1])


def test_a_detector_without_its_column_has_no_values(annotated):
    assert set(annotated.values([*DETECTORS, Detector(Unlikely(), 1.0)])) == {"copy", "empty", "script"}


def test_written_table_has_values_and_flags_behind(annotated, tmp_path):
    values = annotated.values(DETECTORS)
    annotated.write(tmp_path / "out.tsv", values, {each.name: flags(each, values[each.name]) for each in DETECTORS})
    with (tmp_path / "out.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert list(rows[0])[: len(ROWS[0])] == ROWS[0]
    assert [row["script"] for row in rows] == ["0", "0", "", "1"]
    assert [row["script flag"] for row in rows] == ["0", "0", "0", "1"]
    assert [row["source"] for row in rows] == [row[0] for row in ROWS[1:]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "must have a header of different names and a row or more"),
        ([["source", "output"]], "must have a header of different names and a row or more"),
        ([["source", "source"], ["a", "b"]], "must have a header of different names"),
        ([["source", "text"], ["a", "b"]], "must have a column `output`, but has source, text instead"),
        ([["source", "output"], ["a"]], "must have 2 columns in every line, but has 1 in line 2"),
        ([["source", "output"], ["a", "b"]], "`--source` must name the language, or"),
        ([["source", "output", "source_language"], ["a", "b", "de"]], "`--target` must name the language, or"),
        ([["source", "output", "source_language", "target_language"], ["a", "b", "de", "klingon"]], "`klingon`"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, rows, says):
    with pytest.raises(UsageError, match=says):
        Annotated.read(write(tmp_path / "t.tsv", rows))


def test_no_file_and_no_number(tmp_path):
    with pytest.raises(UsageError, match="must be a table of tab-separated values, but cannot be read"):
        Annotated.read(tmp_path / "none.tsv")
    rows = [["source", "output", "log_probability"], ["a", "b", "high"]]
    annotated = Annotated.read(write(tmp_path / "t.tsv", rows), source="en", target="de")
    with pytest.raises(UsageError, match="`log_probability` must be a number in each row"):
        annotated.values([Detector(Unlikely(), 1.0)])


def test_judgement_by_hand(annotated):
    kinds = {column: annotated.kinds(column) for column in annotated.labels}
    found = judge(DETECTORS, annotated.values(DETECTORS), kinds, scores=annotated.scores())
    assert [(each.name, each.flagged, each.counted) for each in found.rates] == [
        ("copy", 1, 4),
        ("empty", 1, 4),
        ("script", 1, 3),
        (ANY, 3, 4),
    ]
    assert found.rates[2].rate == pytest.approx(1 / 3)
    assert found.faulty == {"label": 2, "label_kind": 3}
    label = found.labels["label"]
    assert (label[ANY].agreement.precision, label[ANY].agreement.recall) == pytest.approx((2 / 3, 1))
    assert label[ANY].auc == pytest.approx((1 + 0.5 + 1 + 0.5) / 4)  # 1 1 against 0 1
    assert label["script"].auc == pytest.approx(0.25)  # 0 against 0 and 1, the empty output left out
    assert label["score_x"].auc == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert label["score_x"].agreement.flagged == 0
    assert found.labels["label_kind"]["script"].kinds == {"copy": 0, "empty": 0, "script": 1}
    assert found.labels["label_kind"][ANY].agreement.f1 == 1


def test_judgement_without_labels_is_rates_alone(annotated):
    found = judge(DETECTORS, annotated.values(DETECTORS), {})
    assert found.labels == {}
    content = found.to_json()
    assert content["detectors"]["copy"]["signature"] == DETECTORS[0].signature
    assert content["detectors"]["any"]["rate"] == 0.75


def test_nothing_to_judge_on_is_null_in_json(annotated):
    found = judge(DETECTORS, annotated.values(DETECTORS), {"label": [""] * 4})
    judged = found.labels["label"]["empty"]
    assert math.isnan(judged.auc)
    assert judged.to_json() == {"roc_auc": None, "precision": 0, "recall": None, "f1": 0, "kinds": {}}
