"""Suites: the ones that come with the toolkit, mistakes in files, and what a suite needs before it starts."""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.suites.suites import (
    Given,
    GivenFiles,
    Planned,
    configurations,
    needs,
    open_text,
    suite,
    suite_names,
)
from nllb_prune.languages import all_languages, language_set
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.planning.plan import plan

ROOT = Path(__file__).parents[3]
MINIMAL = """
description = "Two languages."
languages = "mini"
directions = ["eng_Latn-deu_Latn", "deu_Latn-*"]
[model]
default = "mini"
[text]
kind = "mini"
split = "test"
[calibration]
split = "dev"
[baselines]
full = true
[configurations.half]
kept = 0.5
[configurations.own]
given = "masks"
"""


@pytest.fixture
def minimal(tmp_path):
    """Returns a suite from the minimal file, with replacements."""

    def read(*changes):
        content = MINIMAL
        for old, new in changes:
            assert old in content
            content = content.replace(old, new)
        path = tmp_path / "own.toml"
        path.write_text(content)
        return suite(path)

    return read


@pytest.fixture(scope="module")
def statistics():
    """Of the model inside the package, on a few lines of dev text, every language once on each side."""
    codes = language_set("mini").codes
    ring = [(code, codes[n - 1]) for n, code in enumerate(codes)]
    text, model = ParallelText.open(embedded_text(), split="dev"), load_model("mini")
    return lambda folder: calibrate(model, load_tokenizer("mini"), text, ring, sentences=4, folder=folder)


@pytest.fixture(scope="module")
def mini_statistics(statistics, tmp_path_factory):
    return statistics(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def statistics_file(mini_statistics, tmp_path_factory):
    path = tmp_path_factory.mktemp("statistics") / "mini.safetensors"
    mini_statistics.save(path)
    return path


@pytest.fixture
def flores(tmp_path):
    """An empty FLORES-200 of three lines, in two more languages than NLLB-200 has."""
    for split, line in (("dev", "a"), ("devtest", "b")):
        (tmp_path / "flores" / split).mkdir(parents=True)
        for code in (*(each.code for each in all_languages()), "arb_Latn", "min_Arab"):
            (tmp_path / "flores" / split / f"{code}.{split}").write_text(f"{line}\n" * 3)
    return tmp_path / "flores"


def test_every_suite_of_the_toolkit_can_be_read():
    assert suite_names() == ("mini", "mini-budgets", "nllb202", "paper30", "paper53")
    counted = {name: (len(suite(name).codes), len(suite(name).pairs())) for name in suite_names()}
    assert counted == {
        "mini": (10, 90),
        "mini-budgets": (10, 90),
        "nllb202": (202, 40_602),  # as published
        "paper30": (30, 870),
        "paper53": (53, 2_756),  # as published
    }
    assert [suite(name).text.split for name in ("paper30", "paper53", "nllb202")] == ["dev", "devtest", "devtest"]


def test_budgets_of_the_suites_are_those_of_the_names(mini_statistics):
    found = configurations(suite("mini-budgets"), mini_statistics, {})
    assert found.pop("full") is None
    assert len(found) == 10
    for name, masks in found.items():
        pruned = float(name.removesuffix("-1to1").rpartition("-")[2]) / 100
        counts = {stack.name: sum(map(len, masks.mask(stack.name, "eng_Latn", "deu_Latn"))) for stack in masks.stacks}
        assert sum(counts.values()) == pytest.approx((1 - pruned) * sum(stack.total for stack in masks.stacks))
        assert counts["encoder"] == counts["decoder"] * (1 if name.endswith("1to1") else 3) or pruned == 0.5
    assert found["global-75"].granularity == "global"
    assert found["random-75"].plan["seed"] == 0


@pytest.mark.parametrize(("name", "kept"), [("paper30", 384), ("paper53", 288), ("nllb202", 288)])
def test_budgets_of_the_published_settings(name, kept):
    for planned in suite(name).planned.values():
        counts = planned.settings.get("counts")
        layers = 6  # of each side of NLLB-MoE 54.5B (arXiv 2207.04672)
        assert (layers * sum(counts.values()) if counts else planned.settings["kept"] * 1536) == kept


def test_a_suite_in_a_file(minimal, tmp_path):
    found = minimal()
    assert (found.name, found.source, found.sentences, found.beams) == ("own", str(tmp_path / "own.toml"), None, 1)
    assert found.pairs()[0] == ("eng_Latn", "deu_Latn")
    assert len(found.pairs()) == 1 + 9
    assert found.configurations == {"half": Planned({"kept": 0.5}), "own": Given("masks")}
    assert len(minimal(('["eng_Latn-deu_Latn", "deu_Latn-*"]', '"english"')).pairs()) == 18


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kept = 0.5", "keep = 0.5", r"\[half\] must have the keys kept, pruned, .* but has keep too"),
        ("kept = 0.5", 'criterion = "top1"', r"must have one of kept, pruned, memory, counts.* but has none instead"),
        ("kept = 0.5", "kept = 0.5\npruned = 0.5", r"but has kept and pruned instead"),
        ("kept = 0.5", 'kept = "half"', r"`kept` of .*\[half\] must be a whole number or a number, but is 'half'"),
        ("kept = 0.5", "kept = true", r"`kept` of .* must be a whole number or a number, but is True"),
        (
            "kept = 0.5",
            'kept = 0.5\ncriterion = "best"',
            r"`criterion` of .* must be one of importance, .* but is best",
        ),
        ("kept = 0.5", 'kept = 0.5\nscope = "all"', r"`scope` of .* must be one of layer, .* but is all instead"),
        ("kept = 0.5", 'kept = 0.5\ngranularity = "pair"', r"\[calibration\] must be pair for half, but is language"),
        ("kept = 0.5", "kept = 0.5\noptional = true", r"has optional too"),
        ('given = "masks"', 'given = "x"', r"`given` of .* must be one of masks, index, but is x"),
        ("configurations.half", "configurations.full", r"other than full and dense, but one is 'full'"),
        ("configurations.half", 'configurations."../a"', r"but one is '../a'"),
        ("[baselines]\nfull = true", "[baseline]\nfull = true", r"but has baseline too"),
        ("full = true", "full = 1", r"`full` of .* must be true or false, but is 1"),
        ("full = true", 'dense = "mini-dense"', r"`dense` of .* must be a table, but is 'mini-dense'"),
        ('kind = "mini"', 'kind = "minus"', r"`kind` of .*\[text\] must be one of mini, FLORES-200, but is minus"),
        ('kind = "mini"\nsplit = "test"', 'kind = "mini"', r"`split` must be given in .*\[text\], but is missing"),
        ('split = "dev"', 'split = "test"', r"must be another one than is translated, but is test too"),
        ('[calibration]\nsplit = "dev"', "", r"`calibration` must be given in .*own.toml, but is missing"),
        ('languages = "mini"', 'languages = "all"', r"`languages` of .* must be one of mini, .* but is all"),
        ('languages = "mini"', 'languages = "mini"\nbeams = 0', r"`beams` of .* must be 1 or more, but is 0"),
        ('languages = "mini"', 'languages = "mini"\nsentences = "9"', r"`sentences` of .* must be a whole number"),
        ('["eng_Latn-deu_Latn", "deu_Latn-*"]', "[]", r"`directions` of .* must be all, english, or a list"),
        ('["eng_Latn-deu_Latn", "deu_Latn-*"]', '"eng_Latn-fra_Latn"', r"own.toml: `directions` must .* `fra_Latn`"),
        ('description = "Two languages."', "", r"`description` must be given in .*own.toml, but is missing"),
        ("full = true", "full = ", r"must be a suite, but is not valid TOML"),
    ],
)
def test_mistakes_are_one_line(minimal, old, new, message):
    with pytest.raises(UsageError, match=message) as raised:
        minimal((old, new))
    assert "\n" not in str(raised.value)


def test_unknown_suites_are_refused(tmp_path):
    for name in ("paper", str(tmp_path / "none.toml"), str(tmp_path)):
        with pytest.raises(UsageError, match=r"must be one of mini, mini-budgets, .* or a `\.toml` file, but is"):
            suite(name)


def test_mini_lacks_statistics_alone(statistics_file):
    before = needs(suite("mini"), GivenFiles())
    assert [need.what for need in before.missing] == ["statistics"]
    assert (before.directions, before.sentences, before.translations) == (90, 200, 90 * 200 * 2)
    command = "nllb-prune calibrate mini --split dev --output mini-statistics.safetensors"
    assert before.missing[0].missing == f"make them: {command}"
    assert before.text().splitlines()[-1].endswith("(full, per-language-75) = 36,000 translations, greedy")
    assert command in before.text()
    with pytest.raises(UsageError, match="The suite mini must have all it needs, but lacks: statistics"):
        before.check()
    after = needs(suite("mini"), GivenFiles(statistics=statistics_file))
    assert after.missing == ()
    assert "missing" not in after.text()
    after.check()


def test_sentences_of_the_text_are_counted(statistics_file):
    given = GivenFiles(statistics=statistics_file)
    lines = len((embedded_text() / "test" / "eng_Latn.test").read_text().splitlines())
    assert needs(replace(suite("mini"), sentences=None), given).sentences == lines
    assert needs(replace(suite("mini"), sentences=10**6), given).sentences == lines


def test_size_of_a_local_model(statistics_file):
    spec = load_spec("mini")
    model = load_model("mini")
    routers = sum(p.numel() for name, p in model.named_parameters() if "router" in name)
    size = 2 * (sum(p.numel() for p in model.parameters()) - routers) + 4 * routers
    found = needs(suite("mini"), GivenFiles(), dtype="bfloat16").items[0]
    assert f"({size} bytes) of weights in bfloat16" in found.found
    assert spec.parameters is None


def test_a_published_suite_without_anything():
    found = needs(suite("paper53"), GivenFiles())
    assert [need.what for need in found.missing] == ["model", "text", "statistics"]
    assert found.sentences == 1012
    assert found.configurations == ("full", "per-language-80", "per-direction-80", "global-80")
    assert found.translations == 2756 * 1012 * 4
    assert "optional, left out" in found.text()


def test_a_model_on_the_hub_is_not_fetched():
    found = needs(suite("paper53"), GivenFiles(model="owner/model", dense="owner/dense"))
    assert [need.what for need in found.missing] == ["text", "statistics"]
    assert "owner/model, on the Hub: fetched when the run starts" in found.text()
    assert found.configurations[-1] == "dense"
    assert "calibrate owner/model --text FLORES --split dev --granularity pair" in found.text()


def test_a_model_of_another_size_is_refused():
    (model, *_) = needs(suite("paper53"), GivenFiles(model="mini")).missing
    experts = load_spec("mini").experts
    assert model.missing == f"it must be nllb-moe of 1,536 experts, but is nllb-moe of {experts:,} experts instead"
    (model, *_) = needs(suite("mini"), GivenFiles(model="none")).missing
    assert model.missing.startswith("`model` must be mini, mini-dense, a folder or a Hub id")


def test_flores_folder(flores):
    found = needs(suite("nllb202"), GivenFiles(model="owner/model", text=str(flores)))
    assert [need.what for need in found.missing] == ["statistics"]
    assert found.sentences == 3
    command = f"calibrate owner/model --text {flores} --split dev --output nllb202-statistics.safetensors"
    assert found.missing[0].missing == f"make them: nllb-prune {command}"
    (flores / "devtest" / "fon_Latn.devtest").unlink()
    found = needs(suite("nllb202"), GivenFiles(text=str(flores)))
    assert "lacks 1 of them (fon_Latn)" in found.missing[1].missing


def test_command_names_the_directions_of_fewer_languages_than_the_text_has(flores):
    found = needs(suite("paper30"), GivenFiles(model="owner/model", text=str(flores)))
    (statistics,) = found.missing
    command = statistics.missing.removeprefix("make them: ")
    option = command.partition(" --directions ")[2].replace("python", shlex.quote(sys.executable), 1)
    script = f"printf %s {option}"
    printed = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split(",") == [f"{a}-{b}" for a, b in suite("paper30").pairs()]
    assert len(printed.split(",")) == 870


def test_command_for_statistics_by_language_of_a_part_of_the_text(flores):
    by_language = replace(
        suite("paper30"), configurations={"half": Planned({"kept": 0.5})}, calibration=suite("nllb202").calibration
    )
    (statistics,) = needs(by_language, GivenFiles(model="owner/model", text=str(flores))).missing
    assert "--granularity" not in statistics.missing
    assert " --directions \"$(python -c '" in statistics.missing
    assert statistics.missing.endswith(' paper30)" --pairs-per-target all')


def test_statistics_that_do_not_fit_are_refused(statistics_file, tmp_path, minimal, mini_statistics):
    given = GivenFiles(statistics=statistics_file)

    def problem(suite, given=given):
        return {need.what: need.missing for need in needs(suite, given).missing}["statistics"]

    assert problem(suite("mini"), GivenFiles(statistics=tmp_path / "none")).startswith(f"`{tmp_path / 'none'}`")
    reap = minimal(("kept = 0.5", 'kept = 0.5\ncriterion = "reap"'))
    assert problem(reap).startswith("they lack the groups norms; make others: nllb-prune calibrate mini --split dev")
    assert "--collect norms" in problem(reap)
    pair = minimal(("kept = 0.5", 'kept = 0.5\ngranularity = "pair"'), ('"dev"', '"dev"\ngranularity = "pair"'))
    assert problem(pair).startswith("they must be kept by direction (pair), but are kept by language instead")
    other = replace(suite("mini"), languages="paper-30")
    assert problem(other).startswith("they lack 27 of 30 languages (tsn_Latn, vie_Latn, fra_Latn and 24 more)")
    on_dev = replace(suite("mini"), text=replace(suite("mini").text, split="dev"))
    assert problem(on_dev).startswith("they were made from the lines that are translated (eng_Latn, spa_Latn")
    fingerprint = replace(mini_statistics.fingerprint, table="0")
    mini_statistics_of_another = replace(
        mini_statistics, spec=replace(mini_statistics.spec, fingerprint=fingerprint), copy=True
    )
    mini_statistics_of_another.save(tmp_path / "other.safetensors")
    assert problem(suite("mini"), GivenFiles(statistics=tmp_path / "other.safetensors")).startswith(
        "they are of another model"
    )


def test_masks_that_are_given(minimal, statistics_file, mini_statistics, tmp_path):
    found = needs(minimal(), GivenFiles(statistics=statistics_file))
    assert [(need.what, need.missing) for need in found.missing] == [("masks own", "--masks own=FILE")]
    plan(mini_statistics, kept=0.5, languages=["eng_Latn", "deu_Latn"]).save(tmp_path / "two.json")
    few = GivenFiles(statistics=statistics_file, masks={"own": tmp_path / "two.json"})
    assert needs(minimal(), few).missing[0].missing.startswith("they lack 8 of 10 directions (deu_Latn-spa_Latn, ")
    plan(mini_statistics, kept=0.5).save(tmp_path / "all.json")
    whole = GivenFiles(statistics=statistics_file, masks={"own": tmp_path / "all.json"})
    assert needs(minimal(), whole).missing == ()
    assert needs(minimal(), whole).configurations == ("full", "half", "own")
    optional = minimal(('given = "masks"', 'given = "index"\noptional = true'))
    found = needs(optional, GivenFiles(statistics=statistics_file))
    assert found.missing == ()
    assert found.configurations == ("full", "half")
    assert "nllb-prune masks import INDEX --model MODEL --output FILE" in found.text()


def test_configurations(minimal, mini_statistics):
    masks = plan(mini_statistics, kept=0.25)
    found = configurations(minimal(), mini_statistics, {"own": masks})
    assert list(found) == ["full", "half", "own"]
    assert (found["full"], found["own"]) == (None, masks)
    assert found["half"].signature == plan(mini_statistics, kept=0.5).signature
    with pytest.raises(UsageError, match="`own` of the suite own must be given masks, but has none"):
        configurations(minimal(), mini_statistics, {})
    with pytest.raises(UsageError, match="`half` of the suite own must be planned from statistics"):
        configurations(minimal(), None, {"own": masks})
    with pytest.raises(UsageError, match="must be for own, but are for other too"):
        configurations(minimal(), mini_statistics, {"own": masks, "other": masks})
    optional = minimal(('given = "masks"', 'given = "masks"\noptional = true'))
    assert list(configurations(optional, mini_statistics, {})) == ["full", "half"]


def test_statistics_of_more_languages_are_restricted(minimal, mini_statistics, monkeypatch):
    two = replace(minimal(), configurations={"half": Planned({"kept": 0.5, "granularity": "global"})})
    monkeypatch.setattr(type(two), "codes", ("eng_Latn", "deu_Latn"))
    found = configurations(two, mini_statistics, {})["half"]
    assert isinstance(found, MaskSet)
    assert (
        found.signature
        == plan(mini_statistics, kept=0.5, granularity="global", languages=["eng_Latn", "deu_Latn"]).signature
    )


def test_text_of_a_suite(flores):
    assert open_text(suite("mini"), None).languages == tuple(sorted(language_set("mini").codes))
    assert open_text(suite("paper30"), str(flores)).lines("eng_Latn") == ("a",) * 3
    assert open_text(suite("paper53"), str(flores)).lines("eng_Latn") == ("b",) * 3
    with pytest.raises(UsageError, match=r"`text` must be FLORES-200, a folder with `dev/eng_Latn\.dev`"):
        open_text(suite("paper30"), None)
