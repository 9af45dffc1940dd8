"""What `plan` and `masks show` print of masks that were measured."""

import json

import pytest

from nllb_prune.cli import main
from nllb_prune.cli.plan import describe


def told(masks):
    """The lines after those of any masks."""
    lines = describe(masks).splitlines()
    return lines[[line.endswith(masks.signature) for line in lines].index(True) + 1 :]


def test_the_guard(guarded):
    assert told(guarded()) == [
        "guard: 2 of 2 encoder masks and 1 of 2 decoder masks passed, 7 measures",
        "2 masks grew; a direction got 2.0 experts on average and 2 at most, of a reserve of 2",
        "mask              planned  kept  worst figure, times its tolerance  at most  now",
        "----------------  -------  ----  ---------------------------------  -------  ---  ------",
        "decoder/eng_Latn        4     6    token loss of deu_Latn-eng_Latn      1.5  1.2  FAILED",
        "decoder/deu_Latn        4     6                         token loss      2.0  0.5  passed",
        "not measured, no text: encoder/fra_Latn, decoder/fra_Latn",
        "failed: decoder/eng_Latn",
    ]


def test_masks_that_pass_as_planned(guarded):
    record = guarded().plan["guard"]
    calm = {"planned": 4, "kept": 4, "figures": {"loss_change": 0.01}, "passed": True}
    masks = {stack: dict.fromkeys(("deu_Latn", "eng_Latn", "fra_Latn"), calm) for stack in ("encoder", "decoder")}
    directions = {key: {**each, "passed": True} for key, each in record["directions"].items()}
    assert told(guarded(masks=masks, directions=directions, failed=[], rounds=[])) == [
        "guard: 3 of 3 encoder masks and 3 of 3 decoder masks passed, 7 measures",
        "no mask grew",
    ]


def test_many_masks(of_202):
    lines = told(of_202)
    assert lines[0] == "guard: 202 of 202 encoder masks and 134 of 202 decoder masks passed, 7 measures"
    assert lines[1].startswith("135 masks grew; a direction got 4.0 experts on average and 6 at most")
    end = lines.index("... and 115 more")
    rows = lines[4:end]
    assert len(rows) == 20
    assert all(row.endswith("FAILED") for row in rows)
    factors = [float(row.split()[-2]) for row in rows]
    assert factors == sorted(factors, reverse=True)
    assert max(map(len, lines)) <= 100
    failed = " ".join(line.strip() for line in lines[end + 1 :])
    assert failed == f"failed: {', '.join(of_202.plan['guard']['failed'])}"


def test_names_of_directions_are_not_broken(guarded):
    names = [f"decoder/deu_Latn-{code}_Latn" for code in ("fra", "nld", "por", "spa", "swh", "tur", "ita")]
    lines = told(guarded(failed=names))
    start = next(n for n, line in enumerate(lines) if line.startswith("failed: "))
    assert [word.strip(",") for line in lines[start:] for word in line.split()] == ["failed:", *names]
    assert len(lines[start:]) == 3


def test_a_reserve_in_bytes(guarded):
    lines = told(guarded(reserve={"bytes": 2 * 10**9}))
    assert lines[1].endswith("and 2 at most, of a reserve of 2.00 GB")
    assert lines[2] == "  (2000000000 bytes)"


def test_a_ratio(searched):
    assert told(searched["ratio"]) == [
        "ratio: 3 measures of token loss, nats more than the full model's",
        "encoder  decoder    mean           worst direction",
        "-------  -------  ------  ------------------------  --",
        "      4       28  0.2000  0.4000 deu_Latn-eng_Latn",
        "     10       22  0.0432  0.0864 eng_Latn-deu_Latn  <-",
        "     28        4  1.5000  3.0000 deu_Latn-eng_Latn",
    ]


def test_a_ratio_per_language(searched):
    assert told(searched["language"]) == [
        "ratio: 14 measures of token loss, nats more than the full model's",
        "encoder  decoder  encoder alone  decoder alone    both",
        "-------  -------  -------------  -------------  ------  --",
        "      4       28         0.2000         0.0100  0.2100",
        "     10       22         0.1000         0.0200  0.1200  <-",
        "     28        4         0.0500         0.6000  0.6500",
        "each language its own: the loss is 0.0900 with a ratio per language, 0.1100 with the best for all",
        "languages keep 8 + 24 to 12 + 20 experts, encoder + decoder",
    ]


def test_a_ratio_per_language_that_was_not_better(searched):
    masks = searched["language"]
    masks.plan["ratio_search"]["chosen"] = "shared"
    assert told(masks)[-1].startswith("one for all: the loss is 0.0900 with")


def test_one_of_equal_points_is_marked(searched):
    masks = searched["ratio"]
    masks.plan["ratio_search"]["curve"] *= 2
    assert [line.endswith("<-") for line in told(masks)].count(True) == 1


def test_layers(searched):
    assert told(searched["layers"]) == [
        "layers: 18 measures, token loss 0.0788 before, 0.0302 after",
        "stack    experts of each layer before     after",
        "-------  ----------------------------  --------",
        "encoder                          2, 2      2, 2",
        "decoder                          5, 5  7.5, 2.5",
    ]


def test_masks_show_tells_it_once(guarded, capsys, tmp_path):
    masks = guarded()
    masks.save(tmp_path / "m.json")
    assert main(["masks", "show", str(tmp_path / "m.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "failed: decoder/eng_Latn" in lines
    plan = json.loads(next(line for line in lines if line.startswith("{")))
    assert plan == {"measured": masks.plan["measured"]}
    assert main(["masks", "show", str(tmp_path / "m.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == masks.plan


@pytest.mark.parametrize("decisions", [{"guard": True}, {"ratio": "auto", "layers": "auto", "guard": True}], ids=str)
def test_what_planning_wrote_is_told(planned, decisions):
    lines = told(planned(**decisions))
    starts = [word for word in ("ratio", "layers", "guard") if any(line.startswith(f"{word}: ") for line in lines)]
    assert starts == [name for name in ("ratio", "layers", "guard") if name in decisions]
    assert max(map(len, lines)) <= 100
