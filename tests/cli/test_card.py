"""`nllb-prune card`, which needs no fairseq2."""

import yaml

from nllb_prune.model.source import embedded_masks, model_folder


def test_printed(works):
    card = yaml.safe_load(works("card", "mini"))
    assert (card["name"], card["model_family"]) == ("mini", "nllb_moe")
    assert card["checkpoint"] == str(model_folder("mini").resolve())
    assert card["model_config"]["encoder_sparse_layers"] == [1, 3, 5]
    assert "encoder_experts" not in card["model_config"]  # all are there
    assert card["tokenizer_config"]["control_symbols"][:2] == ["<mask>", "__eng_Latn__"]


def test_of_a_pruned_checkpoint(works, tmp_path):
    export = tmp_path / "pruned"
    works(
        "export",
        "mini",
        "--masks",
        embedded_masks(),
        "--source",
        "eng_Latn",
        "--target",
        "deu_Latn",
        "--output",
        export,
    )
    out = tmp_path / "assets" / "pruned.yaml"
    assert works("card", export, "--name", "eng-deu", "--output", out) == f"{out}: eng-deu\n"
    config = yaml.safe_load(out.read_text())["model_config"]
    assert [len(ids) for ids in config["encoder_experts"]] == [16, 16, 16]
    assert config["num_experts"] == 64


def test_of_a_dense_model(works):
    config = yaml.safe_load(works("card", "mini-dense"))["model_config"]
    assert (config["encoder_sparse_layers"], config["decoder_sparse_layers"]) == ([], [])


def test_a_name_that_fairseq2_would_split(fails):
    assert "`name` must have a letter and no `@`" in fails("card", "mini", "--name", "a@b")


def test_a_model_that_is_not_there(fails):
    for name in ("maxi", "facebook/nllb-moe-54b"):
        assert f"`model` must be a folder on this machine, which fairseq2 is to read, but is {name}" in fails(
            "card", name
        )
