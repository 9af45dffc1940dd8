"""`nllb-prune plan` with a measure of the model: end to end on the embedded model, and wrong input."""

import json

import pytest

from nllb_prune.masks import MaskSet
from nllb_prune.model.source import embedded_text

SMALL = ("--measured-sentences", 6, "--measured-sources", 1)
THREE = "eng_Latn-deu_Latn,deu_Latn-zho_Hans,zho_Hans-eng_Latn,deu_Latn-eng_Latn,eng_Latn-zho_Hans,zho_Hans-deu_Latn"


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    from nllb_prune.cli import main

    path = tmp_path_factory.mktemp("plan") / "statistics.safetensors"
    assert main(["calibrate", "mini", "--directions", THREE, "--sentences", "30", "--output", str(path)]) == 0
    return path


@pytest.fixture
def planned(works, statistics, tmp_path):
    """Plans with a small measure; returns what was printed and the masks."""

    def call(*arguments, name="masks.json"):
        out = works("plan", statistics, "--model", "mini", *SMALL, "--output", tmp_path / name, *arguments)
        return out, MaskSet.load(tmp_path / name)

    return call


def sizes(masks, stack):
    return {key: sum(map(len, mask)) for key, mask in masks.masks[stack].items()}


def test_guard(planned, works, statistics, tmp_path):
    """At an eighth of the experts the decoder masks fail, grow within the reserve, and keep what was planned."""
    arguments = ("--keep", 0.125, "--guard", "--reserve", 12)
    out, masks = planned(*arguments)
    guard = masks.plan["guard"]
    works("plan", statistics, "--keep", 0.125, "--output", tmp_path / "unguarded.json")
    before = MaskSet.load(tmp_path / "unguarded.json")
    assert guard["rounds"][0]["stage"] == "encoder"
    assert {"decoder", "pair", "translations"} <= {each["stage"] for each in guard["rounds"]}
    for stack in ("encoder", "decoder"):
        for key, mask in before.masks[stack].items():
            assert all(set(old) <= set(new) for old, new in zip(mask, masks.masks[stack][key], strict=True))
            told = guard["masks"][stack][key]
            assert (told["planned"], told["kept"]) == (sizes(before, stack)[key], sizes(masks, stack)[key])
    grown = [masks.kept(*each.split("-")) - before.kept(*each.split("-")) for each in guard["directions"]]
    assert 0 < max(grown) <= guard["reserve"]["experts"] == 12
    assert set(guard["directions"]) <= set(THREE.split(","))
    assert masks.plan["measured"]["skipped"] == 30  # the lines that the statistics are of
    assert "guard" in out
    for name in guard["failed"]:
        assert name in out


def test_the_same_input_gives_the_same_bytes(planned, tmp_path):
    for name in ("a.json", "b.json"):
        planned("--keep", 0.125, "--guard", "--reserve", "10%", name=name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_masks_within_tolerance_stay_as_planned(planned, works, statistics, tmp_path):
    wide = "loss_change=9,end_loss_change=9,early_change=1,late_change=1,length_change=9,runaway_change=1"
    _, masks = planned("--keep", 0.25, "--guard", "--tolerances", wide)
    works("plan", statistics, "--keep", 0.25, "--output", tmp_path / "unguarded.json")
    assert masks.masks == MaskSet.load(tmp_path / "unguarded.json").masks
    assert masks.plan["guard"]["failed"] == []
    assert masks.plan["guard"]["tolerances"]["loss_change"] == 9
    assert masks.plan["guard"]["measures"]["calls"] == 4


def test_ratio(planned):
    out, masks = planned("--keep", 0.1875, "--ratio", "auto")
    found = masks.plan["ratio_search"]
    losses = {json.dumps(each["experts"]): each["loss_change"] for each in found["curve"]}
    assert min(losses, key=losses.get) == json.dumps(found["chosen"])
    assert 5 <= found["measures"] == len(losses) <= 9
    assert all(sum(json.loads(each).values()) == 72 for each in losses)
    assert {stack: sizes(masks, stack)["eng_Latn"] for stack in masks.masks} == found["chosen"]
    assert all(f"{each['loss_change']:.4f}" in out for each in found["curve"])


def test_ratio_and_layers_by_language(planned):
    _, masks = planned("--keep", 0.1875, "--ratio", "auto-per-language", "--layers", "auto-per-language")
    assert all(sizes(masks, "encoder")[key] + sizes(masks, "decoder")[key] == 72 for key in masks.languages())
    rounds = masks.plan["layer_search"]["rounds"]
    chosen = masks.plan["layer_search"]["chosen"]["loss_change"]
    assert chosen <= rounds[0]["before"]
    losses = masks.plan["ratio_search"]["loss_change"]
    assert rounds[0]["before"] == min(losses.values())


def test_json_has_the_record(works, statistics):
    out = works("plan", statistics, "--keep", 0.25, "--ratio", "auto", "--model", "mini", *SMALL, "--dry-run", "--json")
    assert json.loads(out)["plan"]["ratio_search"]["measures"] >= 5


def test_what_is_to_come_is_told_before_it_starts(cli, statistics):
    status, _, err = cli("plan", statistics, "--keep", 0.25, "--guard", "--model", "mini", *SMALL, "--dry-run")
    assert status == 0
    first, second = err.splitlines()[:2]
    assert first.startswith("3 directions x 6 sentences to measure on, about 4 to ")
    assert second.startswith("the full model takes about ")


def test_lines_of_the_statistics_are_noted_where_there_are_no_others(planned, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for path in (embedded_text() / "dev").iterdir():
        lines = path.read_text().splitlines(keepends=True)
        (text / f"{path.stem}.txt").write_text("".join(lines[:45]))
    _, masks = planned("--keep", 0.5, "--guard", "--text", text, "--measured-sentences", 30)
    assert any("lines that the statistics are of too, as 15 others are left" in note for note in masks.plan["notes"])
    assert masks.plan["measured"]["skipped"] == 0


def test_usage(cli, statistics):
    for arguments, message in (
        (("--guard",), "argument --guard: needs --model"),
        (("--ratio", "auto"), "argument --ratio: needs --model"),
        (("--layers", "auto"), "argument --layers: needs --model"),
        (("--guard", "--rounds", 2, "--model", "mini"), "argument --guard: not allowed with argument --rounds"),
        (("--layers", "some"), "invalid choice"),
    ):
        status, _, err = cli("plan", statistics, "--keep", 0.25, "--dry-run", *arguments)
        assert status == 2
        assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reserve", "5%"), "`--reserve` must be given with `--guard`"),
        (("--tolerances", "loss_change=1"), "`--tolerances` must be given with `--guard`"),
        (("--guard", "--reserve", "much"), "`reserve` must be a number of experts (24)"),
        (("--guard", "--tolerances", "loss=1"), "`tolerances` must be like loss_change=0.1"),
        (("--guard", "--tolerances", "loss_change=-1"), "`tolerances` must be like"),
        (("--guard", "--granularity", "union"), "`granularity` must be language, pair or global"),
        (("--ratio", "auto", "--granularity", "union"), "`budget_for` must be union for a ratio that is found"),
        (("--guard", "--languages", "deu_Latn,eng_Latn", "--text", "eng_Latn.txt"), "eng_Latn.txt"),
        (("--ratio", "auto", "--scope", "ranking"), "`ratio` must be left out or given, but is both auto"),
        (("--ratio", "auto-per-language", "--granularity", "global"), "`granularity` must be language for a ratio"),
        (("--guard", "--measured-sentences", 5000), "`--measured-sentences` must be 1 to 955"),
        (("--guard", "--model", "mini-dense"), "`mini-dense` is a dense model"),
        (("--guard", "--text", "/nowhere"), "nowhere"),
    ],
)
def test_wrong_input_is_one_line(fails, statistics, arguments, message):
    assert message in fails("plan", statistics, "--keep", 0.25, "--model", "mini", "--dry-run", *arguments)
