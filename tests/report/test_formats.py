"""The JSON, TSV and Markdown of a report are as documented, and hold the numbers of the summary."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.report.compare import compare
from nllb_prune.report.json_report import report_json, without_nan
from nllb_prune.report.text_tables import directions_tsv, markdown

DOCUMENT = (Path(__file__).parents[2] / "docs" / "report-format.md").read_text(encoding="utf-8")


def documented(heading):
    """The keys in the table under a heading."""
    part = re.split(r"^#+ ", DOCUMENT, flags=re.MULTILINE)
    (section,) = [each for each in part if each.startswith(f"{heading}\n")]
    return set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def report(inputs):
    effects = {"full": (0.0, 0.0), "half": (-0.1, 0.0), "per-language": (-1, 0.1), "ratio-1-1": (-2, 0.1)}
    plans = {"half": {"ratio": "3:1"}, "per-language": {"ratio": "3:1"}, "ratio-1-1": {"ratio": "1:1"}}
    return report_json(inputs.make_summary(effects=effects, plans=plans, kept={"half": 0.5}))


def objects(report):
    evaluation = report["evaluation"]
    pruned = evaluation["configurations"][2]
    yield "Report", report
    yield "Overview", report["overview"][1]
    yield "Budget curve", report["budgets"][0]
    yield "Budget point", report["budgets"][0]["chrf"][0]
    yield "Ratio point", report["ratios"][0][0]
    yield "Summary", evaluation
    yield "Configuration", pruned
    yield "Group", pruned["groups"][0]
    yield "Figure", pruned["groups"][0]["figures"]["chrf"]
    yield "Change", pruned["groups"][0]["figures"]["chrf"]["change"]
    yield "Direction", pruned["directions"][0]
    yield "Example", pruned["examples"][0]
    yield "Verdict", pruned["verdict"]


def test_json_has_the_documented_keys(report):
    for heading, found in objects(report):
        assert set(found) == documented(heading), heading


def test_json_of_a_comparison_has_the_documented_keys(inputs):
    first = inputs.make_summary(effects={"full": (0.0, 0.0), "global": (-1, 0.0)})
    content = compare(first, replace(inputs.summary, beams=2)).to_json()
    pair = content["configurations"][1]
    assert set(content) == documented("Comparison object")
    assert set(content["notices"][0]) == documented("Notice")
    assert set(pair) == documented("Pair")
    assert set(pair["figures"][0]) == documented("Compared figure")
    assert set(pair["moved"][0]) == documented("Moved direction")


def test_json_holds_the_summary_unchanged(tmp_path, inputs):
    content = json.loads(json.dumps(report_json(inputs.summary, inputs.masks), allow_nan=False))
    inputs.summary.save(tmp_path / "summary.json")
    assert content["evaluation"] == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    (tmp_path / "again.json").write_text(json.dumps(content["evaluation"]), encoding="utf-8")
    assert Summary.load(tmp_path / "again.json").to_json() == inputs.summary.to_json()
    assert content["main"] == "per-language"
    assert [each["name"] for each in content["overview"]] == list(inputs.names)
    assert content["overview"][2]["weight_share"] == pytest.approx(0.4)
    worst = inputs.summary["random"].worst().direction
    assert content["overview"][4]["worst_directions"][0] == worst


def test_what_was_not_measured_is_null():
    assert without_nan({"a": [float("nan"), 1.5, (float("inf"),)], "b": "nan"}) == {
        "a": [None, 1.5, [None]],
        "b": "nan",
    }


@pytest.mark.parametrize(("spbleu", "name"), [(True, "spBLEU"), (False, "BLEU")])
def test_tsv_has_every_direction_of_every_configuration(inputs, spbleu, name):
    summary = inputs.make_summary(spbleu=spbleu)
    header, *lines = [line.split("\t") for line in directions_tsv(summary).splitlines()]
    assert header == ["direction", name, "chrF++", "len_ratio", "configuration"]
    found = {(line[4], line[0]): [float(cell) for cell in line[1:4]] for line in lines}
    assert len(found) == len(lines) == 9 * 30
    for configuration in summary.configurations:
        for d in configuration.directions:
            wanted = [d.figures[each] for each in ("spbleu" if spbleu else "bleu", "chrf", "length_ratio")]
            assert found[configuration.name, d.direction] == pytest.approx(wanted, abs=0.0051)


def test_markdown_has_verdicts_tables_and_signatures(inputs):
    text = markdown(inputs.summary)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert [len(table.splitlines()) - 2 for table in tables] == [9, 8, 3 * 8]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for configuration in inputs.summary.configurations:
        if configuration.verdict is not None:
            assert f"- **{configuration.name}: {configuration.verdict.outcome}**" in text
            assert all(reason in text for reason in configuration.verdict.reasons)
    assert all(signature in text for found in inputs.summary.signatures.values() for signature in found)
    assert inputs.summary["random"].worst().direction in tables[2]


def test_markdown_of_one_configuration_compares_nothing(inputs):
    text = markdown(inputs.make_summary(effects={"full": (0.0, 0.0)}))
    assert "Change of" not in text
    assert text.count("\n| ") == 3


def test_markdown_escapes_names(inputs):
    summary = inputs.make_summary(effects={"full": (0.0, 0.0)})
    evil = replace(summary.configurations[0], name="a|b<i>")
    assert "a\\|b&lt;i>" in markdown(replace(summary, configurations=(evil,), baseline="a|b<i>"))
