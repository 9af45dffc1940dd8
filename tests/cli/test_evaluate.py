"""`evaluate` through the command line: tables, files, killed runs, and one line for whatever is wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.evaluation.worker import Worker
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_spec
from nllb_prune.model.source import model_folder

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "reference" / "tiny"
PAIR = "eng_Latn-deu_Latn"
BOTH = f"{PAIR},deu_Latn-eng_Latn"
SPBLEU = ("--spbleu-model", model_folder("mini") / "sentencepiece.bpe.model")


def save_masks(path, spec, layers):
    MaskSet(
        model_name="mini",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": tuple(layers(stack) for _ in stack.layers)} for stack in spec.stacks},
    ).save(path)
    return path


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Files of masks: every expert, and a random eighth."""
    folder, spec, drawn = tmp_path_factory.mktemp("masks"), load_spec("mini"), random.Random(7)
    save_masks(folder / "every.json", spec, lambda stack: tuple(range(stack.experts)))
    save_masks(folder / "few.json", spec, lambda stack: tuple(sorted(drawn.sample(range(stack.experts), 8))))
    return folder


@pytest.fixture
def arguments(masks, tmp_path):
    """Full and a random eighth on three sentences of two directions."""
    text = ("--directions", BOTH, "--sentences", 3, *SPBLEU)
    return ("evaluate", "mini", *text, "--masks", masks / "few.json", "--output", tmp_path / "scores")


def results(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.gz"))}


def moments(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.gz"))}


# what is printed and written


def test_a_table_a_verdict_and_how_the_numbers_were_made(works, arguments, masks, tmp_path):
    out = works(*arguments, "--masks", f"whole={masks / 'every.json'}")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["full", "few", "whole"]
    assert "2 directions, 3 sentences each; against full" in lines
    assert "whole: accepted with warnings" in lines
    few = "3 sentences a direction are too few to tell (20 or more are enough to begin with)"
    assert lines[lines.index("whole: accepted with warnings") + 1] == f"  {few}"
    assert lines.count(f"  {few}") == 2
    assert [line for line in lines if line.startswith("chrf: nrefs:1|")]
    assert [line for line in lines if line.startswith("spbleu: ") and "|tok:spm-" in line]
    assert [line for line in lines if line.startswith("oscillation: oscillation|n:4|")]
    assert len(results(tmp_path / "scores")) == 6


def test_the_summary_and_the_index_are_beside_the_results(works, arguments, tmp_path):
    works(*arguments)
    summary, index = Summary.load(tmp_path / "scores" / "summary.json"), Evaluation.open(tmp_path / "scores")
    assert [each.name for each in summary.configurations] == list(index.configurations) == ["full", "few"]
    assert summary["few"].kept == 0.125
    assert summary.sentences == 3
    for name in index.configurations:
        for direction, found in zip(index.directions, summary[name].directions, strict=True):
            assert index.result(name, direction).scores["chrf"].value == pytest.approx(found.figures["chrf"])


def test_json_is_the_summary(works, arguments, tmp_path):
    printed = json.loads(works(*arguments, "--json"))
    assert printed == json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert printed["baseline"] == "full"


def test_a_dense_model_beside_the_others(works, arguments):
    found = json.loads(works(*arguments, "--dense", "mini-dense", "--json", "--baseline", "dense"))
    named = {each["name"]: each for each in found["configurations"]}
    assert list(named) == ["full", "few", "dense"]
    assert (named["dense"]["baseline"], named["few"]["baseline"], named["dense"]["kept"]) == (None, "dense", 1.0)
    assert 0 < named["dense"]["weight_bytes"] < named["full"]["weight_bytes"]


def test_the_full_model_can_be_left_out(works, arguments, masks):
    found = json.loads(works(*arguments, "--no-full", "--masks", masks / "every.json", "--json"))
    assert (found["baseline"], [each["name"] for each in found["configurations"]]) == ("few", ["few", "every"])


def test_without_a_model_of_spbleu_it_is_left_out_and_one_is_told(cli, arguments, monkeypatch):
    monkeypatch.setattr("nllb_prune.evaluation.scores.spbleu.cached_model", lambda: Path("none/such.model"))
    given = tuple(each for each in arguments if each not in SPBLEU)
    status, out, err = cli(*given, "--json")
    assert status == 0
    assert err.startswith("spBLEU is left out: ")
    assert "spbleu" not in json.loads(out)["configurations"][0]["groups"][0]["figures"]


def test_tests_and_limits_can_be_chosen(works, arguments):
    name = "paired randomisation"
    found = json.loads(works(*arguments, "--json"))
    assert found["test"] == {"name": name, "rates": name, "resamples": 1000, "trials": 10_000, "seed": 12345}
    options = ("--test", "bootstrap", "--resamples", 50, "--trials", 70, "--seed", 3, "--limit", "mean_loss=50/60")
    found = json.loads(works(*arguments, *options, "--json"))
    assert found["test"] == {"name": "paired bootstrap", "rates": name, "resamples": 50, "trials": 70, "seed": 3}
    assert found["limits"]["mean_loss"] == [50, 60]


def test_fidelity_can_be_left_out(works, arguments):
    found = [
        json.loads(works(*arguments, *options, "--json"))["configurations"][1] for options in ((), ("--no-fidelity",))
    ]
    assert found[0]["fidelity"]["kl"] > 0
    assert found[1]["fidelity"] is None


# runs again


def test_the_same_command_makes_nothing_again(works, arguments, tmp_path):
    first = works(*arguments)
    before, files = (tmp_path / "scores" / "summary.json").read_bytes(), moments(tmp_path / "scores")
    assert works(*arguments) == first
    assert (tmp_path / "scores" / "summary.json").read_bytes() == before
    assert moments(tmp_path / "scores") == files


def test_other_settings_are_told_once_and_made_again(cli, arguments, tmp_path):
    cli(*arguments)
    before = results(tmp_path / "scores")
    status, _, err = cli(*arguments, "--beams", 2)
    assert status == 0
    assert err == "4 results made again: `beams` was 1 and is 2 (4 files)\n"
    assert not set(results(tmp_path / "scores").values()) & set(before.values())
    assert Summary.load(tmp_path / "scores" / "summary.json").beams == 2


def test_a_threshold_makes_nothing_again_and_flags_otherwise(works, arguments, tmp_path):
    first = json.loads(works(*arguments, "--json"))
    files = moments(tmp_path / "scores")
    second = json.loads(works(*arguments, "--threshold", "long=0.001", "--json"))
    assert moments(tmp_path / "scores") == files
    rates = [each["configurations"][0]["groups"][0]["figures"]["long"]["value"] for each in (first, second)]
    assert rates[0] < rates[1]
    assert "|t:0.001|" in second["signatures"]["long"][0]


def test_the_threshold_of_unlikely_is_fitted_unless_given(works, arguments):
    found = [
        json.loads(works(*arguments, *options, "--json"))["signatures"]["unlikely"][0]
        for options in ((), ("--threshold", "unlikely=1.9"))
    ]
    assert "|t:1.9|" in found[1]
    assert found[0] != found[1]


def test_force_makes_all_again(works, arguments, tmp_path):
    works(*arguments)
    before, files = results(tmp_path / "scores"), moments(tmp_path / "scores")
    works(*arguments, "--force")
    assert results(tmp_path / "scores") == before
    assert all(moment > files[name] for name, moment in moments(tmp_path / "scores").items())


def test_force_that_is_interrupted_before_its_first_result_leaves_the_old_ones(cli, works, arguments, tmp_path):
    works(*arguments)
    before, files = results(tmp_path / "scores"), moments(tmp_path / "scores")
    summary = (tmp_path / "scores" / "summary.json").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "__call__", interrupted)
        status, out, err = cli(*arguments, "--force")
    assert (status, out) == (130, "")
    assert err == "nllb-prune evaluate: interrupted; the same command continues where it stopped.\n"
    assert not (tmp_path / "scores" / "summary.json").exists()
    assert (results(tmp_path / "scores"), moments(tmp_path / "scores")) == (before, files)
    works(*arguments)
    assert moments(tmp_path / "scores") == files
    assert (tmp_path / "scores" / "summary.json").read_bytes() == summary


def killed(command, folder, *, until):
    """Run until the results are so, and kill the process without a warning; return the results it left."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "nllb_prune", *map(str, command)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not until(moments(folder)) and process.poll() is None:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return moments(folder)


@pytest.fixture
def command(masks, tmp_path):
    """Makes an evaluation of eight results of 40 sentences, which takes a while, in a folder."""

    def of(name):
        text = ("--directions", f"{BOTH},spa_Latn-eng_Latn,eng_Latn-spa_Latn", "--sentences", 40, *SPBLEU)
        return ("evaluate", "mini", *text, "--masks", masks / "few.json", "--threads", 1, "--output", tmp_path / name)

    return of


def test_a_killed_run_is_continued_to_the_same_bytes(works, command, tmp_path):
    left = killed(command("killed"), tmp_path / "killed", until=lambda found: len(found) >= 3)
    assert 3 <= len(left) < 8
    assert not (tmp_path / "killed" / "summary.json").exists()
    works(*command("killed"))
    after = moments(tmp_path / "killed")
    assert {name: after[name] for name in left} == left
    works(*command("whole"))
    assert len(results(tmp_path / "whole")) == 8
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    for name in ("summary.json", "evaluation.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("options", [["--beams", 2], ["--force"]], ids=["other settings", "force"])
def test_a_run_that_is_killed_in_the_middle_of_remaking_leaves_no_summary(works, fails, command, tmp_path, options):
    folder = tmp_path / "remade"
    works(*command("remade"))
    before, summary = moments(folder), folder / "summary.json"
    assert summary.exists()
    assert "chrF++" in works("report", "--scores", folder)

    def remade(found):
        return {name for name, moment in found.items() if moment != before.get(name)}

    left = killed((*command("remade"), *options), folder, until=remade)
    assert set(left) == set(before)
    assert 1 <= len(remade(left)) < 8
    assert not summary.exists()
    for what in (["--scores", folder], ["--scores", summary], ["--compare", folder, folder]):
        assert f"`{summary}` must be the summary of an evaluation, but there is no such file" in fails("report", *what)
    beams = [each for each in options if each != "--force"]
    works(*command("remade"), *beams)
    works(*command("whole"), *beams)
    assert results(folder) == results(tmp_path / "whole")
    assert summary.read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_wrong_input_leaves_the_summary(works, fails, arguments, tmp_path):
    works(*arguments)
    before = (tmp_path / "scores" / "summary.json").read_bytes()
    for wrong in (
        ["--baseline", "other"],
        ["--limit", "loss=1/2"],
        ["--threshold", "scripts=1"],
        ["--threshold", "long=nan"],
        ["--seed", -1],
        ["--source", "en"],
    ):
        fails(*arguments, *wrong)
        assert (tmp_path / "scores" / "summary.json").read_bytes() == before


# suites

ONE_DIRECTION = """
description = "One direction, with masks that are given."
languages = "mini"
directions = ["eng_Latn-deu_Latn"]
sentences = 2
[model]
default = "mini"
[text]
kind = "mini"
split = "test"
[baselines]
full = true
[configurations.own]
given = "masks"
"""


@pytest.fixture
def own_suite(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(ONE_DIRECTION)
    return path


def test_what_a_suite_needs_as_json(works, cli, own_suite, masks, tmp_path):
    found = json.loads(works("evaluate", "--suite", own_suite, "--needs", "--json"))
    facts = {"suite": "own", "directions": 1, "sentences": 2, "configurations": ["full", "own"], "translations": 4}
    assert {name: found[name] for name in facts} == facts
    assert set(found) == {*facts, "items"}
    missing = {each["what"]: each["missing"] for each in found["items"]}
    assert missing["masks own"] == "--masks own=FILE"
    assert missing["model"] is missing["text"] is None
    given = ("--masks", f"own={masks / 'few.json'}")
    found = json.loads(works("evaluate", "--suite", own_suite, *given, "--needs", "--json"))
    assert {each["missing"] for each in found["items"]} == {None}
    text = works("evaluate", "--suite", own_suite, *given, "--needs")
    assert text.splitlines()[-1].endswith("(full, own) = 4 translations, greedy")
    status, out, err = cli("evaluate", "--suite", own_suite, "--json", *SPBLEU, "--output", tmp_path / "s")
    assert (status, out) == (1, "")
    assert "missing: --masks own=FILE" in err
    assert not (tmp_path / "s").exists()


def test_a_suite_with_json_prints_nothing_else_on_standard_output(cli, works, own_suite, masks, tmp_path):
    suite = ("evaluate", "--suite", own_suite, "--masks", f"own={masks / 'few.json'}", *SPBLEU)
    status, out, err = cli(*suite, "--json", "--output", tmp_path / "s")
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "s" / "summary.json").read_text())
    assert [each["name"] for each in json.loads(out)["configurations"]] == ["full", "own"]
    assert err == works(*suite, "--needs")
    assert works(*suite, "--output", tmp_path / "s").startswith(err)


# what is wrong


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--masks", "none.json"], "no such file"),
        (["--no-full"], "`--masks` must name at least one configuration with `--no-full`, but names none"),
        (["--baseline", "other"], "`--baseline` must be one of full, but is other instead"),
        (["--baseline", "full", "--no-full", "--masks", "none.json"], "no such file"),
        (["--split", "devtest"], "`split`"),
        (["--directions", "eng_Latn-fra_Latn"], "must use the languages"),
        (["--limit", "mean_loss=3/2"], "`limit` must be NAME=WARN/REJECT with WARN <= REJECT"),
        (["--limit", "loss=1/2"], "a name of mean_loss, into_english_loss, worst_loss"),
        (["--threshold", "script"], "`--threshold` must be NAME=VALUE"),
        *((["--threshold", f"long={value}"], f"but is `long={value}` instead") for value in ("nan", "inf", "-inf")),
        (["--source", "en"], "`--source` must go with `--detect-only`, but that is missing"),
        (["--target", "de"], "`--target` must go with `--detect-only`, but that is missing"),
        (["--languages", "mini"], "`--languages` must go with `--detect-only`, but that is missing"),
        (["--threshold", "scripts=1"], "`thresholds` must be of oscillation"),
        (["--spbleu-model", "none.model"], "`none.model` must be a sentencepiece model, but there is no such file"),
        (["--lid-model", "none.bin"], "none.bin"),
        (["--seed", "-1"], "`seed` must be 0 or more, but is -1 instead"),
        (["--dense", "maxi"], "`model` must be mini"),
    ],
    ids=" ".join,
)
def test_wrong_input(cli, tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    spbleu = () if "--spbleu-model" in options else SPBLEU
    status, out, err = cli(
        "evaluate", "mini", "--directions", PAIR, "--sentences", 1, *spbleu, *options, "--output", "s"
    )
    assert (status, out) == (1, "")
    assert err.startswith("nllb-prune evaluate: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "s" / "summary.json").exists()


def test_the_model_and_the_output_must_be_given(fails):
    assert "`MODEL` must be given" in fails("evaluate", "--output", "s")
    assert "`--output` must be given" in fails("evaluate", "mini")


@pytest.mark.parametrize("names", [["a=", "a="], ["", ""], ["full="], ["dense="], ["../up="], ["/tmp/up="]])
def test_configurations_need_names_of_their_own(fails, masks, tmp_path, names):
    given = [part for name in names for part in ("--masks", f"{name}{masks / 'few.json'}")]
    assert "a name of its own" in fails("evaluate", "mini", *given, *SPBLEU, "--output", tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_configurations_are_not_named_as_files_of_the_folder(fails, masks, tmp_path):
    given = ("--masks", f"summary.json={masks / 'few.json'}", "--directions", PAIR, "--sentences", 1)
    line = fails("evaluate", "mini", *given, *SPBLEU, "--output", tmp_path / "scores")
    assert "not end in .json, but one is 'summary.json' instead" in line
    assert not (tmp_path / "scores").exists()


def test_masks_that_do_not_fit(fails, masks, tmp_path):
    output = (*SPBLEU, "--output", tmp_path / "s")
    other = save_masks(tmp_path / "other.json", load_spec(TINY), lambda stack: (0, 1))
    assert "must belong to the model" in fails("evaluate", "mini", "--masks", other, *output)
    content = json.loads((masks / "few.json").read_text())
    content["granularity"] = "language"
    content["masks"] = {stack: {"eng_Latn": each["*"]} for stack, each in content["masks"].items()}
    english = tmp_path / "english.json"
    english.write_text(json.dumps(content))
    line = fails("evaluate", "mini", "--directions", "en-tr", "--masks", english, *output)
    assert "must have a mask" in line
    assert not (tmp_path / "s").exists()


def test_texts_that_do_not_fit(fails, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "eng_Latn.txt").write_text("play\nstop\n")
    (folder / "deu_Latn.txt").write_text("spiel\n")
    command = ("evaluate", "mini", "--text", folder, *SPBLEU, "--output", tmp_path / "scores")
    assert "same number of lines" in fails(*command)
    (folder / "deu_Latn.txt").write_bytes(b"\xff\n\n")
    assert "must be UTF-8 text" in fails(*command)


def test_what_is_no_model(fails, tmp_path):
    output = (*SPBLEU, "--output", tmp_path / "s")
    (tmp_path / "eng_Latn.txt").write_text("play\n")
    (tmp_path / "deu_Latn.txt").write_text("spiel\n")
    assert "folder with a `config.json`" in fails("evaluate", tmp_path, "--text", tmp_path, *output)
    assert "must hold a tokenizer" in fails("evaluate", TINY, "--text", tmp_path, *output)
    assert "`--text` must name aligned text" in fails("evaluate", TINY, *output)


def test_masks_are_not_of_a_dense_model(fails, masks, tmp_path):
    dense = ("evaluate", "mini-dense", "--directions", PAIR, *SPBLEU, "--output", tmp_path / "s")
    assert "must belong to the model" in fails(*dense, "--masks", masks / "few.json")
    assert not (tmp_path / "s").exists()
