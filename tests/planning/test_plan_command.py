"""`nllb-prune plan` on statistics made by hand."""

import json
from dataclasses import replace

import pytest

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.cli import main
from nllb_prune.cli import plan as verb
from nllb_prune.languages import PruningSettings, language_set
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import ParameterCounts
from nllb_prune.planning import CRITERIA
from nllb_prune.planning.memory import DTYPES
from nllb_prune.planning.scopes import SCOPES

CODES = ("eng_Latn", "deu_Latn", "fra_Latn")
PARAMETERS = ParameterCounts(dense=10**9, router=1000, expert={"encoder": 10**8, "decoder": 10**8})


@pytest.fixture(scope="module")
def path(make_statistics, tmp_path_factory):
    made = make_statistics(languages=CODES)
    spec = replace(made.spec, parameters=PARAMETERS)
    path = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    ExpertStatistics(spec, "pair", made.tables, items=made.items, signature=made.signature).save(path)
    return path


@pytest.fixture
def planned(path, capfd, tmp_path):
    """Ends well; returns what was printed and the masks that were written."""

    def call(*arguments):
        output = tmp_path / "masks.json"
        status = main(["plan", str(path), *map(str, arguments), "--output", str(output)])
        out, err = capfd.readouterr()
        assert (status, err) == (0, "")
        return out, MaskSet.load(output)

    return call


@pytest.fixture
def refused(path, capfd, tmp_path):
    """Ends with one line and writes nothing; returns the status and the line."""

    def call(*arguments, output=True):
        output = ["--output", str(tmp_path / "masks.json")] if output else []
        try:
            status = main(["plan", str(path), *map(str, arguments), *output])
        except SystemExit as ended:
            status = ended.code
        out, err = capfd.readouterr()
        assert out == ""
        assert list(tmp_path.glob("masks.json")) == []
        return status, err.splitlines()[-1]

    return call


def test_what_is_printed(planned):
    out, masks = planned("--keep", 16)
    assert masks.plan["bytes"] == 2 * (10**9 + 16 * 10**8) + 4000
    assert out.splitlines()[2:] == [
        "encoder      3                6, 6   8",
        "decoder      3                2, 2   8",
        "a direction keeps 16 of 32 experts, 50.00%",
        "the weights of a direction take at most 5.20 GB (5200004000 bytes) in bfloat16 "
        "and alone fit cards of 8, 16, 24, 32, 40, 48, 80, 141 GB",
        f"50.00% of the experts pruned; signature {masks.signature}",
        out.splitlines()[-1],
    ]


def test_many_different_counts_are_shown_as_ranges(planned):
    out, masks = planned("--keep", 20, "--scope", "threshold", "--granularity", "pair", "--dtype", "float32")
    layers = [[len(mask[n]) for mask in masks.masks["encoder"].values()] for n in (0, 1)]
    assert ", ".join(f"{min(each)}-{max(each)}" if len(set(each)) > 1 else str(each[0]) for each in layers) in out
    assert "note: One budget over the whole model" in out
    assert "12.00 GB" in out
    assert "alone fit cards of 16," in out


def test_a_dry_run_writes_nothing(path, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(path), "--prune", "50%", "--dry-run"]) == 0
    assert "nothing written" in capfd.readouterr().out
    assert main(["plan", str(path), "--prune", "0.5", "--dry-run", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["output"], told["fits_gb"][0], told["plan"]["kept_experts"]) == (None, 8, 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--memory", "6GB"), {"budget": {"memory": 6 * 10**9, "ratio": {"encoder": 3, "decoder": 1}, "minimum": 2}}),
        (("--memory", "12GB", "--dtype", "float32"), {"dtype": "float32", "kept_experts": 19}),
        (("--counts", "encoder=3/4,decoder=2"), {"counts": {"encoder": [3, 4], "decoder": [2, 2]}}),
        (("--prune", "0.25"), {"kept_experts": 24}),
        (("--keep", "50%", "--minimum", 3), {"counts": {"encoder": [5, 5], "decoder": [3, 3]}}),
        (("--keep", 16, "--reverse", "--criterion", "top2"), {"reverse": True, "criterion": "top2"}),
        (("--keep", 16, "--scope", "divergence"), {"reference": "eng_Latn"}),
        (("--keep", 16, "--scope", "divergence", "--reference", "deu_Latn"), {"reference": "deu_Latn"}),
        (("--keep", 16, "--protect-end", 2), {"protected": {"end": 2}}),
        (("--keep", 16, "--languages", "en,de"), {"languages": ["deu_Latn", "eng_Latn"]}),
        (
            ("--keep", 16, "--granularity", "union", "--budget-for", "union"),
            {"union": {"budget_for": "union"}, "kept_experts": 16},
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_flags(planned, arguments, expected):
    _, masks = planned(*arguments)
    assert {name: masks.plan[name] for name in expected} == expected


def test_within(planned, tmp_path):
    _, wide = planned("--keep", 24)
    wide.save(tmp_path / "wide.json")
    _, narrow = planned("--keep", 16, "--within", tmp_path / "wide.json")
    assert narrow.plan["within"] == wide.signature


def test_overrides(planned, refused, tmp_path):
    (tmp_path / "o.toml").write_text("[languages.eng_Latn]\ndecoder = 4\n")
    _, masks = planned("--keep", 16, "--overrides", tmp_path / "o.toml")
    assert [len(layer) for layer in masks.mask("decoder", "deu_Latn", "eng_Latn")] == [4, 4]
    assert masks.plan["counts"]["decoder"]["fra_Latn"] == [2, 2]
    (tmp_path / "masks.json").unlink()
    (tmp_path / "o.toml").write_text("[languages.spa_Latn]\ndecoder = 4\n")
    assert "are of spa_Latn too" in refused("--keep", 16, "--overrides", tmp_path / "o.toml")[1]


def test_a_set_gives_defaults(planned, monkeypatch):
    usual = PruningSettings("top2", 0.75, "1:1", {"eng_Latn": {"decoder": 7}, "spa_Latn": {"decoder": 7}})
    own = replace(language_set("mini"), pruning=usual)
    monkeypatch.setattr("nllb_prune.languages.language_set", {"mine": own}.__getitem__)
    _, masks = planned("--set", "mine")
    assert (masks.plan["criterion"], masks.plan["budget"]["kept"]) == ("top2", 0.75)
    assert masks.plan["overrides"] == {"eng_Latn": {"decoder": 7}}
    assert [len(layer) for layer in masks.mask("decoder", "deu_Latn", "fra_Latn")] == [6, 6]
    _, masks = planned("--set", "mine", "--keep", 16, "--ratio", "3:1", "--criterion", "mean")
    assert (masks.plan["criterion"], masks.plan["kept_experts"]) == ("mean", 16)
    assert masks.plan["counts"]["encoder"] == [6, 6]
    assert "overrides" not in planned("--set", "mine", "--granularity", "global")[1].plan
    assert planned("--set", "mine", "--counts", "encoder=4,decoder=4")[1].plan["kept_experts"] == 16


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--memory", "1GB"), "`memory` must be"),
        (("--memory", "lots"), "such as 24GiB"),
        (("--prune", "all"), "`pruned` must be a fraction"),
        (("--prune", "1.5"), "`pruned` must be 0 or more"),
        (("--counts", "6,2"), "encoder=36,decoder=12"),
        (("--set", "none"), "`language_set` must be one of"),
        (("--keep", 16, "--overrides", "none.toml"), "cannot be read"),
        (("--keep", 16, "--within", "none.json"), "no such file"),
        (("--keep", 16, "--languages", "spa_Latn,xx"), "but spa_Latn, xx have none"),
        (("--keep", 16, "--scope", "threshold", "--criterion", "confidence"), "parts of a whole"),
        (("--keep", 16, "--protect-super"), "--collect norms"),
        (("--keep", 16, "--protect-end", 9), "0 to 8"),
        (("--keep", 16, "--scope", "divergence", "--reference", "spa_Latn"), "`reference` must have encoder"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_wrong_input(refused, arguments, expected):
    status, line = refused(*arguments)
    assert status == 1
    assert expected in line


@pytest.mark.parametrize(
    ("arguments", "output", "expected"),
    [
        ((), True, "one of the arguments --keep --prune --memory --counts --set is required"),
        (("--keep", 16), False, "--output, or --dry-run"),
        (("--keep", 16, "--memory", "1GB"), True, "argument --memory: not allowed with argument --keep"),
        (("--keep", 16, "--scope", "all"), True, "invalid choice"),
    ],
)
def test_wrong_usage(refused, arguments, output, expected):
    status, line = refused(*arguments, output=output)
    assert status == 2
    assert expected in line


def test_statistics_are_needed(capfd):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--keep", "16", "--output", "m"])
    assert "required: STATISTICS" in capfd.readouterr().err


def test_the_criteria_are_listed(capfd):
    assert main(["plan", "--list-criteria"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(CRITERIA)
    assert next(line for line in lines if line.startswith("frequency")).endswith("ranks a layer as top2 does")
    assert main(["plan", "--list-criteria", "--json"]) == 0
    assert [each["name"] for each in json.loads(capfd.readouterr().out)] == list(CRITERIA)


def test_choices_are_those_of_the_planner(capfd):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    told = " ".join(capfd.readouterr().out.split())
    assert f"{{{','.join(SCOPES)}}}" in told
    assert f"{{{','.join(DTYPES)}}}" in told
    assert verb.describe.__module__.endswith("_plan_show")
