"""`evaluate --detect-only`: detectors on a table of outputs."""

import csv
import json
from pathlib import Path

import pytest

from nllb_prune.cli import parser
from nllb_prune.errors import UsageError

CASES = Path(__file__).parents[1] / "evaluation" / "detectors" / "cases.tsv"


@pytest.fixture
def detect(capsys):
    def call(*arguments):
        options = parser().parse_args(["evaluate", "--detect-only", *map(str, arguments)])
        options.run(options)
        return capsys.readouterr().out

    return call


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.tsv"
    rows = [
        "source\toutput\treference\tlabel",
        "play music\tspiel musik\tspiele musik\t0",
        "play music\tspiel musik spiel musik\tspiele musik\t1",
        "wake me up\twake me up\tweck mich auf\t1",
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def lines_of(out, heading):
    """The rows of the table behind a line, by their first cell."""
    rows = out[out.index(heading) :].split("\n\n")[0].splitlines()
    return {row.split()[0]: row.split()[1:] for row in rows if row}


def test_rates_and_agreement_are_printed(detect, table):
    out = detect(table, "--source", "en", "--target", "de", "--languages", "mini")
    rates = lines_of(out, "detector")
    assert rates["repetition"] == ["1", "3", "33.3"]
    assert rates["copy"] == ["1", "3", "33.3"]
    assert rates["any"] == ["2", "3", "66.7"]
    agreement = lines_of(out, "`label`: 2 faulty")
    assert agreement["copy"] == ["0.750", "100.0", "50.0", "66.7"]
    assert agreement["any"] == ["1.000", "100.0", "100.0", "100.0"]
    assert "unlikely left out: no log_probability" in out
    assert "repetition|n:2|" in out


def test_recall_by_kind_is_printed(detect):
    out = detect(CASES, "--languages", "mini")
    rows = lines_of(out, "recall % by kind\n")
    assert rows["detector"][:3] == ["copy", "detached", "doubled"]
    assert rows["copy"][0] == "100.0"
    assert rows["repetition"][2] == "100.0"


def test_json_holds_the_same(detect, table):
    content = json.loads(detect(table, "--source", "en", "--target", "de", "--languages", "en,de", "--json"))
    assert content["sentences"] == 3
    assert content["detectors"]["copy"]["flagged"] == 1
    assert content["labels"]["label"]["any"]["f1"] == 1
    assert content["left_out"] == {"unlikely": ["log_probability"], "unfinished": ["ended"]}
    assert "|languages:2-" in content["detectors"]["off-target"]["signature"]


def test_output_has_values_and_flags(detect, table, tmp_path):
    detect(table, "--source", "en", "--target", "de", "--output", tmp_path / "out.tsv")
    with (tmp_path / "out.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["copy flag"] for row in rows] == ["0", "0", "1"]
    assert [row["repetition"] for row in rows] == ["0", "0.333333", "0"]
    assert [row["label"] for row in rows] == ["0", "1", "1"]


def test_thresholds_change_flags_and_signatures(detect, table):
    options = (table, "--source", "en", "--target", "de", "--json")
    content = json.loads(detect(*options, "--threshold", "repetition=0.4"))
    assert content["detectors"]["repetition"]["flagged"] == 0
    assert "|t:0.4|" in content["detectors"]["repetition"]["signature"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--source", "en"], "`--target` must name the language"),
        (["--source", "en", "--target", "klingon"], "`klingon`"),
        (["--source", "en", "--target", "de", "--languages", "minis"], "`minis`"),
        (["--source", "en", "--target", "de", "--threshold", "script"], "`--threshold` must be NAME=VALUE"),
        (["--source", "en", "--target", "de", "--threshold", "scripts=1"], "`thresholds` must be of oscillation"),
        (["--source", "en", "--target", "de", "--threshold", "labse=1"], "`thresholds` must be of oscillation"),
        (["--source", "en", "--target", "de", "--threshold", "script=nan"], "but is `script=nan` instead"),
        (["--source", "en", "--target", "de", "--threshold", "script=-inf"], "but is `script=-inf` instead"),
        (["--source", "en", "--target", "de", "--lid-model", "none.bin"], "must be a fastText model file"),
        (["--source", "en", "--target", "de", "--labse", "none"], "must be a folder with the model of `labse`"),
    ],
)
def test_one_line_for_what_is_wrong(detect, table, options, says):
    with pytest.raises(UsageError, match=says):
        detect(table, *options)


@pytest.mark.parametrize(
    "option",
    [
        ["--masks", "masks.json"],
        ["--dense", "mini-dense"],
        ["--suite", "mini"],
        ["--statistics", "statistics.safetensors"],
        ["--needs"],
        ["--text", "folder"],
        ["--directions", "en-de"],
        ["--beams", "4"],
        ["--ray", "local"],
        ["--baseline", "full"],
    ],
    ids=lambda option: option[0],
)
def test_options_of_an_evaluation_are_refused(detect, table, tmp_path, option):
    options = (table, "--source", "en", "--target", "de", "--output", tmp_path / "out.tsv")
    with pytest.raises(UsageError) as found:
        detect(*options, *option)
    assert str(found.value) == f"`{option[0]}` must be left out with `--detect-only`, but is given."
    assert not (tmp_path / "out.tsv").exists()
    detect(*options)
    assert (tmp_path / "out.tsv").exists()


def test_a_model_is_refused(table):
    options = parser().parse_args(["evaluate", "mini", "--detect-only", str(table), "--source", "en", "--target", "de"])
    with pytest.raises(UsageError, match="`MODEL` must be left out with `--detect-only`, but is given"):
        options.run(options)
