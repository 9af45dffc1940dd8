"""`nllb-prune report` on the command line."""

import json

import pytest

from nllb_prune.cli import main
from nllb_prune.evaluation.summary.table import HEADER


@pytest.fixture
def scores(tmp_path, inputs):
    inputs.summary.save(tmp_path / "scores" / "summary.json")
    return tmp_path / "scores"


def call(*arguments):
    return main(["report", *map(str, arguments)])


def test_the_page_with_statistics_and_masks(tmp_path, capsys, inputs, scores):
    inputs.statistics.save(tmp_path / "statistics.safetensors")
    inputs.masks["per-language"].save(tmp_path / "per-language.json")
    inputs.masks["ratio-1-1"].save(tmp_path / "other.json")
    arguments = ["--scores", scores / "summary.json", "--output", tmp_path / "r.html"]
    arguments += ["--statistics", tmp_path / "statistics.safetensors"]
    arguments += ["--masks", tmp_path / "per-language.json", "--masks", f"ratio-1-1={tmp_path / 'other.json'}"]
    assert call(*arguments) == 0
    assert "Expert pruning of mini" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "r.html" in capsys.readouterr().out


def test_scores_alone_print_the_table(capsys, scores, inputs):
    assert call("--scores", scores) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert all(name in header for name in HEADER)
    assert [row.split("  ")[0] for row in rows] == list(inputs.names)


def test_json_goes_with_every_other_flag(tmp_path, capsys, scores, inputs):
    files = {"--output": tmp_path / "r.html", "--tsv": tmp_path / "r.tsv", "--markdown": tmp_path / "r.md"}
    assert call("--scores", scores, "--json", *(each for pair in files.items() for each in pair)) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"]["model"] == "mini"
    assert all(path.stat().st_size > 1000 for path in files.values())
    assert call("--compare", scores, scores, "--json", "--output", tmp_path / "c.html") == 0
    assert json.loads(capsys.readouterr().out)["names"] == ["first", "second"]
    assert (tmp_path / "c.html").stat().st_size > 1000


def test_two_evaluations_are_compared(tmp_path, capsys, scores, inputs):
    effects = {"full": (0.0, 0.0), "global": (-1.0, 0.0)}
    inputs.make_summary(effects=effects, sentences=7).save(tmp_path / "other" / "summary.json")
    assert call("--compare", scores, tmp_path / "other" / "summary.json", "--output", tmp_path / "c.html") == 0
    out = capsys.readouterr().out
    assert out.startswith("NOT COMPARED, differs: sentences: 400 | 7\n")
    assert "other minus scores" in out
    assert "only scores has dense, per-language" in out
    assert "<title>scores and other</title>" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_what_a_comparison_does_not_take(capsys, scores):
    assert call("--compare", scores, scores, "--tsv", "a.tsv", "--masks", "m.json") == 1
    assert "must come with `--output` and `--json` alone, but comes with --masks, --tsv." in capsys.readouterr().err


def test_a_folder_without_a_summary_is_one_line(capsys, tmp_path):
    assert call("--scores", tmp_path) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_to_report_is_a_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        call()
    assert stopped.value.code == 2
    assert "--scores --compare" in capsys.readouterr().err
