"""`calibrate`, `evaluate` and `translate` with `--backend fairseq2` through the command line, against the default."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nllb_prune.calibration.fields import GROUPS
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.masks import MaskSet
from nllb_prune.model.source import embedded_masks, embedded_text
from nllb_prune.on_fairseq2.card import card_of, card_text
from tests.on_fairseq2.dense import save_dense_cards
from tests.on_fairseq2.sides import lines

pytestmark = pytest.mark.fairseq2

CONSOLE = Path(sys.executable).parent / "nllb-prune"
BACKEND = "fairseq2 0.8.1"
THEIRS = ("--backend", "fairseq2")
PAIR = ("--source", "eng_Latn", "--target", "deu_Latn")
DIRECTIONS = "eng_Latn-deu_Latn,hin_Deva-eng_Latn,tur_Latn-zho_Hans"
TEXT = "wake me up at nine"
THRESHOLD = re.compile(r"\|t:([\d.]+)")


@pytest.fixture
def fails(cli):
    """Ends with status 1 and one line that begins with the verb; returns what follows."""

    def call(*arguments):
        status, out, err = cli(*arguments)
        assert (status, out) == (1, ""), (out, err)
        told = err.strip("\n")  # where fairseq2 was in use before, its bar leaves an empty line
        start = f"nllb-prune {arguments[0]}: "
        assert told.startswith(start)
        assert "\n" not in told
        assert "Traceback" not in err
        return told.removeprefix(start)

    return call


@pytest.fixture(scope="module")
def masks_file(masks, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "masks.json"
    masks.save(path)
    return path


# calibrate


def assert_same_statistics(ours, theirs):
    """To the last bit; gradients, which meet in another order, within rounding."""
    assert theirs.spec == ours.spec
    assert (theirs.items, theirs.granularity, theirs.collect) == (ours.items, ours.granularity, ours.collect)
    assert theirs.signature == {**ours.signature, "backend": BACKEND}
    for one, two in ((ours.tables, theirs.tables), (ours.weights, theirs.weights)):
        assert two.keys() == one.keys()
        for place, table in one.items():
            assert two[place].keys() == table.keys()
            for name, expected in table.items():
                found = two[place][name]
                if name.startswith("gradient"):
                    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), (place, name)
                else:
                    assert np.array_equal(found, expected), (place, name)


def plan_of(statistics, output, works):
    """Return a plan without what tells where its statistics came from."""
    works("plan", statistics, "--keep", "0.25", "--output", output)
    content = json.loads(output.read_text())
    content["plan"].pop("statistics")
    content.pop("signature", None)
    return content


@pytest.mark.parametrize(
    "options",
    [
        ("--sentences", "40", "--collect", ",".join(GROUPS)),
        ("--sentences", "30", "--mode", "outputs", "--granularity", "pair"),
        ("--sentences", "4", "--masks", "MASKS", "--directions", DIRECTIONS),
        ("--sentences", "10", "--dtype", "bfloat16"),
    ],
    ids=["every group", "outputs", "masks", "bfloat16"],
)
def test_statistics_are_the_same(options, works, masks_file, tmp_path):
    options = [str(masks_file) if each == "MASKS" else each for each in options]
    found = []
    for backend in ("transformers", "fairseq2"):
        path = tmp_path / f"{backend}.safetensors"
        works("calibrate", "mini", *options, "--output", path, "--backend", backend)
        found.append(ExpertStatistics.load(path))
    assert_same_statistics(*found)
    if "--masks" not in options:
        plans = [
            plan_of(tmp_path / f"{each}.safetensors", tmp_path / f"{each}.json", works)
            for each in ("transformers", "fairseq2")
        ]
        assert plans[0] == plans[1]


def test_beams_of_outputs_are_their_own(works, tmp_path):
    """The search differs, so the text that is observed does: it is signed."""
    path = tmp_path / "statistics.safetensors"
    works(
        "calibrate", "mini", *THEIRS, "--sentences", 2, "--directions", DIRECTIONS, "--mode", "outputs", "--beams", 2,
        "--output", path,
    )  # fmt: skip
    signature = ExpertStatistics.load(path).signature
    assert (signature["mode"], signature["backend"]) == ("outputs, beam 2", BACKEND)


def test_statistics_of_one_backend_are_not_continued_by_the_other(works, fails, tmp_path):
    arguments = ("calibrate", "mini", "--sentences", 2, "--directions", "eng_Latn-deu_Latn")
    output = ("--output", tmp_path / "statistics.safetensors")
    works(*arguments, *output, *THEIRS)
    assert "backend" in fails(*arguments, *output)
    other = tmp_path / "other.safetensors"
    works(*arguments, "--output", other)
    assert "backend" in fails("stats", "merge", output[1], other, "--output", tmp_path / "merged.safetensors")


def test_calibrating_an_asset(works, tmp_path):
    path = tmp_path / "statistics.safetensors"
    arguments = ("--text", embedded_text(), "--sentences", 2, "--directions", "eng_Latn-deu_Latn", "--output", path)
    told = json.loads(works("calibrate", "nllb-prune-mini", *THEIRS, *arguments, "--json"))
    assert told["directions"] == 1
    found = ExpertStatistics.load(path)
    assert found.signature["model"] == "nllb-prune-mini"
    assert found.fingerprint.matches(MaskSet.load(embedded_masks()).fingerprint)


# evaluate


def evaluated(works, folder, *options, model="mini"):
    works("evaluate", model, "--output", folder, "--trials", 200, *options)
    return Evaluation.open(folder)


def assert_same_results(ours, theirs):
    assert theirs.directions == ours.directions
    for direction in ours.directions:
        for name in ours.configurations:
            one, two = ours.result(name, direction), theirs.result(name, direction)
            assert two.hypotheses == one.hypotheses
            assert (two.ended == one.ended).all()
            assert two.mean_log_probabilities == pytest.approx(one.mean_log_probabilities, abs=1e-5)
            assert {metric: score.value for metric, score in two.scores.items()} == {
                metric: score.value for metric, score in one.scores.items()
            }
            assert (two.kept, two.weight_bytes) == (one.kept, one.weight_bytes)
            if one.fidelity is not None:
                assert two.fidelity.values() == pytest.approx(one.fidelity.values(), abs=1e-5)


@pytest.fixture(scope="module")
def evaluations(masks_file, tmp_path_factory):
    """The full model, masks and a dense one with both backends, by the console script."""
    folder = tmp_path_factory.mktemp("evaluations")
    for backend in ("transformers", "fairseq2"):
        command = [
            CONSOLE, "evaluate", "mini", "--dense", "mini-dense", "--masks", f"few={masks_file}",
            "--directions", DIRECTIONS, "--sentences", "12", "--trials", "200", "--backend", backend,
            "--output", folder / backend,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (folder / f"{backend}.txt").write_text(done.stdout)
    return folder


def test_results_are_the_same(evaluations):
    ours, theirs = (Evaluation.open(evaluations / backend) for backend in ("transformers", "fairseq2"))
    assert theirs.configurations == ("full", "few", "dense")
    assert_same_results(ours, theirs)


def test_the_tables_are_the_same(evaluations):
    """But for the last digits of the threshold that is a percentile of the full model's mean log-probabilities."""
    ours, theirs = ((evaluations / f"{backend}.txt").read_text() for backend in ("transformers", "fairseq2"))
    thresholds = [list(map(float, THRESHOLD.findall(table))) for table in (ours, theirs)]
    assert THRESHOLD.sub("", theirs) == THRESHOLD.sub("", ours)
    assert thresholds[1] == pytest.approx(thresholds[0], abs=1e-5)


def test_who_made_it_is_told(evaluations):
    ours, theirs = (Evaluation.open(evaluations / backend) for backend in ("transformers", "fairseq2"))
    assert (ours.backend, theirs.backend) == (None, BACKEND)
    for backend, expected in (("transformers", None), ("fairseq2", "0.8.1")):
        versions = json.loads((evaluations / backend / "summary.json").read_text())["versions"]
        assert versions.get("fairseq2") == expected
        assert {"torch", "transformers", "nllb-prune"} <= versions.keys()


@pytest.mark.parametrize(("first", "second"), [("transformers", "fairseq2"), ("fairseq2", "transformers")])
def test_results_of_one_backend_are_not_taken_for_the_others(first, second, cli, works, tmp_path):
    """Made again, and said why; with beams, whose outputs differ, so that it shows which are there."""
    options = ("--directions", "eng_Latn-deu_Latn", "--sentences", 12, "--beams", 4)
    fresh = evaluated(works, tmp_path / "fresh", *options, "--backend", second)
    before = evaluated(works, tmp_path / "scores", *options, "--backend", first)
    direction = before.directions[0]
    assert before.result("full", direction).hypotheses != fresh.result("full", direction).hypotheses
    status, _, told = cli("evaluate", "mini", "--output", tmp_path / "scores", *options, "--backend", second)
    assert status == 0
    names = {"transformers": "transformers", "fairseq2": BACKEND}
    assert f'1 result made again: `backend` was "{names[first]}" and is "{names[second]}" (1 file)' in told
    assert_same_results(fresh, Evaluation.open(tmp_path / "scores"))


def test_results_of_the_same_backend_are_kept(cli, works, tmp_path):
    options = ("--directions", "eng_Latn-deu_Latn", "--sentences", 3, *THEIRS)
    evaluated(works, tmp_path, *options)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "full").iterdir()}
    status, _, told = cli("evaluate", "mini", "--output", tmp_path, *options)
    assert status == 0
    assert "made again" not in told
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "full").iterdir()} == times


def test_dense_models_of_all_kinds_score_alike(evaluations, works, dense_folder, tmp_path):
    """A folder, an asset, and fairseq2's own dense family in two layouts, against transformers."""
    ours = Evaluation.open(evaluations / "transformers")
    directions = "eng_Latn-deu_Latn,hin_Deva-eng_Latn"
    for name in ("nllb-prune-mini-dense", dense_folder / "fairseq.yaml", dense_folder / "fairseq2.yaml"):
        options = ("--directions", directions, "--sentences", 12, "--dense", name, "--no-fidelity", *THEIRS)
        theirs = evaluated(works, tmp_path / Path(name).name, *options)
        for direction in theirs.directions:
            one, two = (each.result("dense", direction) for each in (ours, theirs))
            assert two.hypotheses == one.hypotheses
            assert two.scores["chrf"].value == one.scores["chrf"].value


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory):
    return save_dense_cards(tmp_path_factory.mktemp("dense"))


# translate


def test_text(works):
    assert works("translate", "mini", TEXT, "", *PAIR, *THEIRS) == works("translate", "mini", TEXT, "", *PAIR)


def test_many_lines(works, tmp_path):
    """As many lines out as in, empty ones unchanged, and the same as by default."""
    source, output = tmp_path / "lines.txt", tmp_path / "out.txt"
    given = [*lines("eng_Latn", "test")[:15], "", "   ", *lines("eng_Latn", "test")[15:30]]
    source.write_text("\n".join(given) + "\n", encoding="utf-8")
    works("translate", "mini", "--input", source, "--output", output, *PAIR, *THEIRS)
    found = output.read_text(encoding="utf-8").split("\n")
    assert found[15:17] == ["", "   "]
    assert len(found) == len(given) + 1
    assert output.read_text(encoding="utf-8") == works("translate", "mini", "--input", source, *PAIR)


def test_alternatives_as_json(works):
    out = works(
        "translate", "mini", TEXT, "", "play music", "--beams", 4, "--alternatives", 2, "--json", *PAIR, *THEIRS
    )  # fmt: skip
    first, empty, last = map(json.loads, out.splitlines())
    assert first["text"] == TEXT
    assert empty["translations"] == [empty["translations"][0]] * 2
    assert empty["translations"][0]["text"] == ""
    for each in (first, last):
        one, two = each["translations"]
        assert one["text"] != two["text"]
        assert one["score"] > two["score"]
        assert one["ended"]
        assert one["log_probability"] < 0


def test_early_stopping_is_its_own(works):
    arguments = ("translate", "mini", TEXT, "--beams", 4, *PAIR, *THEIRS)
    assert works(*arguments, "--early-stopping", "yes") == works(*arguments)


def test_masks(works, masks_file):
    ours = works("translate", "mini", TEXT, "--masks", masks_file, *PAIR)
    for name in ("mini", "nllb-prune-mini"):
        assert works("translate", name, TEXT, "--masks", masks_file, *PAIR, *THEIRS) == ours


@pytest.mark.parametrize("settings", [{}, {"experts": "int8"}, {"trimmed": True}], ids=str)
def test_exports(settings, works, exports, tmp_path):
    folder, source = exports(**settings), tmp_path / "lines.txt"
    source.write_text("\n".join(lines("eng_Latn", "test")[:20]), encoding="utf-8")
    arguments = ("translate", folder, "--input", source, *PAIR)
    assert works(*arguments, *THEIRS) == works(*arguments)


def test_parts_of_a_direction_are_enough(works, fails, exports, tmp_path):
    directions = [("eng_Latn", "deu_Latn"), ("spa_Latn", "tur_Latn")]
    folder = shutil.copytree(exports(directions, parts=True), tmp_path / "parts")
    for path in list(folder.iterdir()):
        if "spa_Latn" in path.name or "tur_Latn" in path.name:
            path.unlink()
    arguments = ("translate", folder, TEXT)
    assert works(*arguments, *PAIR, *THEIRS) == works(*arguments, *PAIR)
    fails(*arguments, "--source", "spa_Latn", "--target", "tur_Latn", *THEIRS)


def test_bfloat16(works):
    arguments = ("translate", "mini", *lines("eng_Latn", "test")[:8], "--dtype", "bfloat16", *PAIR, *THEIRS)
    assert works(*arguments).count("\n") == 8


# what cannot be


LLAMA = "name: own-llama\nmodel_family: llama\nmodel_arch: llama3_8b\ncheckpoint: here\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mini", TEXT, *PAIR, "--stream"), "`--stream` must be left out with `--backend fairseq2`"),
        (("mini", "--requests", "FILE"), "`--backend` must be transformers with `--requests`, but"),
        (("mini", "--requests", "FILE", "--memory", "50MB"), "`--backend` must be transformers with `--requests`"),
        (("mini", TEXT, *PAIR, "--memory", "50MB"), "`--memory` must come with `--requests`"),
        (("mini", TEXT, *PAIR, "--stream-memory", "50MB"), "`--stream-memory` must come with `--stream`"),
        (("mini", TEXT, *PAIR, "--early-stopping", "never"), "`early_stopping` must be left out with fairseq2"),
        (("mini", TEXT, *PAIR, "--beams", "4", "--early-stopping", "never"), "`early_stopping` must be left out with"),
        (("mini", TEXT, *PAIR, "--device", "nonsense"), "`--device` must be one that torch can use here (cpu, cuda"),
        (("nonsense", TEXT, *PAIR), "`model` must be mini, mini-dense, a folder, a Hub id (`owner/name`), a .yaml"),
        (("nonsense.yaml", TEXT, *PAIR), "`nonsense.yaml` must hold an asset card of fairseq2, but does not"),
        (("llama3_8b", TEXT, *PAIR), "`llama3_8b` must be of the family nllb_moe or nllb, but is of llama instead."),
        (("LLAMA", TEXT, *PAIR), "`own-llama` must be of the family nllb_moe or nllb, but is of llama instead."),
        (("mini", TEXT, "--source", "eng_Latn", "--target", "fra_Latn"), "`language` must be one of the model's, eng_"),
        (("mini", TEXT, *PAIR, "--masks", "OTHER"), "`masks` must belong to the model nllb-moe"),
        (("nllb-prune-mini", TEXT, *PAIR, "--masks", "OTHER"), "`masks` must belong to the model nllb-moe"),
        (("mini", TEXT, *PAIR, "--masks", "SPANISH"), "`source` must have a mask (spa_Latn), but is eng_Latn"),
        (("nllb-prune-mini", TEXT, *PAIR, "--masks", "SPANISH"), "`source` must have a mask (spa_Latn), but is"),
        (("mini-dense", TEXT, *PAIR, "--masks", "SPANISH"), "`mini-dense` is a dense model (m2m_100)"),
    ],
)  # fmt: skip
def test_one_line_for_what_cannot_be(arguments, message, fails, masks, tmp_path):
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"text": "play music", "source": "en", "target": "de"}\n')
    (tmp_path / "llama.yaml").write_text(LLAMA)
    norms = tuple(each + 1 for each in masks.fingerprint.router_norms)
    fingerprint = dataclasses.replace(masks.fingerprint, table="0" * 16, router_norms=norms)
    dataclasses.replace(masks, model_name="other", fingerprint=fingerprint).save(tmp_path / "other.json")
    spanish = {stack: {"spa_Latn": each["spa_Latn"]} for stack, each in masks.masks.items()}
    dataclasses.replace(masks, masks=spanish).save(tmp_path / "spanish.json")
    files = {"FILE": requests, "OTHER": "other.json", "SPANISH": "spanish.json", "LLAMA": "llama.yaml"}
    given = [tmp_path / files[each] if each in files else each for each in arguments]
    told = fails("translate", *given, *THEIRS)
    assert told.startswith(message)


def test_nothing_but_that_line_is_written():
    """Nothing by fairseq2 either, whose bar is left out where there is no terminal."""
    arguments = ("nllb-prune-mini", TEXT, "--source", "eng_Latn", "--target", "fra_Latn", *THEIRS)
    done = subprocess.run([CONSOLE, "translate", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nllb-prune translate: `language` must be one of the model's")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["calibrate", "evaluate", "translate"])
def test_an_unknown_backend_is_a_wrong_usage(verb, cli):
    status, _, told = cli(verb, "mini", "--backend", "jax")
    assert status == 2
    assert "invalid choice: 'jax' (choose from" in told


def test_calibrate_refuses_dense_models_and_streams(fails, dense_folder, tmp_path):
    output = ("--output", tmp_path / "statistics.safetensors", "--text", embedded_text(), *THEIRS)
    for name in ("mini-dense", "nllb-prune-mini-dense", dense_folder / "fairseq.yaml"):
        assert "nothing to prune" in fails("calibrate", name, *output)
    assert "`--stream` must be left out with `--backend fairseq2`" in fails("calibrate", "mini", "--stream", *output)
    assert not (tmp_path / "statistics.safetensors").exists()


def test_evaluate_tells_what_a_dense_model_may_be(fails, tmp_path):
    options = ("--directions", "eng_Latn-deu_Latn", "--sentences", 1, "--output", tmp_path, *THEIRS)
    told = fails("evaluate", "nonsense", "--text", embedded_text(), *options)
    assert "an asset of fairseq2 (" in told


def test_a_card_for_evaluation_is_like_its_folder(evaluations, works, masks_file, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(card_text(card_of("mini", name="own")), encoding="utf-8")
    options = ("--directions", DIRECTIONS, "--sentences", 12, "--masks", f"few={masks_file}", *THEIRS)
    theirs = evaluated(works, tmp_path / "scores", "--text", embedded_text(), *options, model=path)
    ours = Evaluation.open(evaluations / "transformers")
    for direction in theirs.directions:
        for name in ("full", "few"):
            assert theirs.result(name, direction).hypotheses == ours.result(name, direction).hypotheses


def test_a_suite_with_an_asset(works, tmp_path):
    """What it needs is found out by the backend that runs it."""
    told = works(
        "evaluate", "nllb-prune-mini", "--suite", "mini-budgets", "--dense", "nllb-prune-mini-dense", "--needs",
        "--backend", "fairseq2", "--text", embedded_text(),
    )  # fmt: skip
    assert "nllb-prune-mini, " in told
    assert "nllb-prune-mini-dense, 11.79 MB (11787136 bytes) of weights in float32" in told
