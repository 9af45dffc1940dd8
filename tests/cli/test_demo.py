"""The demo from end to end, on as little text as makes every kind of result."""

import re

from nllb_prune.cli import main
from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.masks import MaskSet

CONFIGURATIONS = (
    "full",
    "per language",
    "global",
    "random",
    "frequency",
    "per language 1:2",
    "per language 1:1",
    "per language 2:1",
    "automatic",
    "guarded",
    "dense",
)


def test_demo_makes_every_result_and_continues(tmp_path, capsys):
    small = ("--calibration-sentences", "2", "--measured-sentences", "2", "--sentences", "1")
    arguments = ["demo", "--output", str(tmp_path), *small]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    summary = Summary.load(tmp_path / "summary.json")
    assert tuple(each.name for each in summary.configurations) == CONFIGURATIONS
    assert summary.model == "mini"
    assert all(len(each.directions) == 30 for each in summary.configurations)
    assert [summary["full"].group(name).directions for name in ("out of English", "into English")] == [9, 9]
    assert all(re.search(rf"^{re.escape(name)} ", output, re.MULTILINE) for name in CONFIGURATIONS)
    for name, counts in (("per-language", (24, 8)), ("per-language-1-1", (16, 16)), ("random", (24, 8))):
        masks = MaskSet.load(tmp_path / "masks" / f"{name}.json")
        kept = masks.direction("eng_Latn", "deu_Latn")
        assert tuple(len(kept[stack][0]) for stack in ("encoder", "decoder")) == counts
    automatic = MaskSet.load(tmp_path / "masks" / "automatic.json")
    assert automatic.kept("eng_Latn", "deu_Latn") == 96
    assert {"ratio_search", "layer_search"} <= set(automatic.plan)
    assert MaskSet.load(tmp_path / "masks" / "guarded.json").plan["measured"]["skipped"] == 2
    report = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    assert main(arguments) == 0  # continues from the finished results
    assert (tmp_path / "report.html").read_bytes() == report
