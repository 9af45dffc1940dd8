"""What a card says of a folder; nothing here but the cards that fairseq2 reads needs fairseq2."""

import importlib.resources
import json
import shutil
from dataclasses import asdict, fields

import pytest
import yaml

from nllb_prune.errors import UsageError
from nllb_prune.model.source import model_folder
from nllb_prune.on_fairseq2.card import SENTENCEPIECE, card_of, card_text
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from tests.on_fairseq2.sides import EMBEDDED_LANGUAGES
from tests.on_fairseq2.test_config import of_folder

CARDS = importlib.resources.files("nllb_prune.on_fairseq2") / "asset_cards"
TOKENIZER_FIELDS = {"tokenizer", "tokenizer_family", "tokenizer_config"}


@pytest.mark.parametrize("name", ["mini", "mini-dense"])
def test_the_card_in_the_package_is_the_one_of_the_model(name):
    packaged = yaml.safe_load((CARDS / f"{name}.yaml").read_text())
    wanted = card_of(name, name=f"nllb-prune-{name}")
    for field in ("checkpoint", "tokenizer"):
        packaged[field] = str((CARDS / packaged[field]).resolve())
    assert packaged == wanted


@pytest.mark.parametrize("name", ["mini", "mini-dense", "export", "trimmed"])
def test_it_says_what_is_not_as_by_default(name, exports):
    folder = model_folder(name) if name.startswith("mini") else exports(trimmed=name == "trimmed")
    card, config, usual = card_of(folder), of_folder(folder), NllbMoeConfig()
    assert card["model_config"] == {
        each.name: getattr(config, each.name)
        for each in fields(config)
        if getattr(config, each.name) != getattr(usual, each.name)
    }
    assert NllbMoeConfig(**{**asdict(usual), **card["model_config"]}) == config
    assert (card["name"], card["model_family"], card["checkpoint"]) == (folder.name, "nllb_moe", str(folder.resolve()))


def test_an_export_has_the_tokenizer_of_its_folder(exports):
    card = card_of(exports(), name="eng-deu")
    assert card["name"] == "eng-deu"
    assert card["tokenizer"] == str((exports() / SENTENCEPIECE).resolve())
    assert {field: card[field] for field in TOKENIZER_FIELDS - {"tokenizer"}} == {
        field: card_of("mini")[field] for field in TOKENIZER_FIELDS - {"tokenizer"}
    }


def test_a_trimmed_vocabulary_has_no_sentencepiece_model(exports):
    card = card_of(exports(trimmed=True))
    assert not TOKENIZER_FIELDS & card.keys()
    assert card["model_config"]["vocab_size"] < 6012


def test_experts_to_keep(masks, exports):
    kept = masks.direction("eng_Latn", "hin_Deva")
    config = card_of("mini", kept=kept)["model_config"]
    assert config["encoder_experts"] == [list(ids) for ids in kept["encoder"]]
    assert config["decoder_experts"] == [list(ids) for ids in kept["decoder"]]
    assert "encoder_experts" not in card_of("mini")["model_config"]


def retold(folder, change):
    """The files of `mini`, with other names for its languages."""
    shutil.copytree(model_folder("mini"), folder, ignore=shutil.ignore_patterns("*.safetensors", "text"))
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        text = (folder / name).read_text(encoding="utf-8")
        for code in EMBEDDED_LANGUAGES:
            text = text.replace(code, change(code))
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_the_first_language_is_the_usual_one_where_there_is_no_english(tmp_path):
    config = card_of(retold(tmp_path / "mini", lambda code: code.replace("eng", "ita")))["tokenizer_config"]
    assert config["default_lang"] == config["langs"][0] == "ita_Latn"
    assert config["control_symbols"][:2] == ["<mask>", "__ita_Latn__"]


def test_a_tokenizer_without_languages_is_not_nllbs(tmp_path):
    assert not TOKENIZER_FIELDS & card_of(retold(tmp_path / "mini", lambda code: f"__{code[:2]}__")).keys()


@pytest.mark.parametrize("name", ["", " ", "a@b", "@"])
def test_names_that_fairseq2_does_not_take(name):
    with pytest.raises(
        UsageError, match=r"^`name` must have a letter and no `@`, which fairseq2 splits it at, but is '"
    ):
        card_of("mini", name=name)


def test_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UsageError, match="`model_type` must be one of nllb-moe, m2m_100, but is t5 instead"):
        card_of(tmp_path)


def test_text_is_yaml_in_order(exports):
    for card in (card_of("mini"), card_of(exports(experts="int4"))):
        text = card_text(card)
        assert yaml.safe_load(text) == card
        assert list(yaml.safe_load(text)) == list(card)
        assert text.startswith("name: ")
        assert max(map(len, text.splitlines())) <= 130 + max(map(len, (card["checkpoint"], card["tokenizer"])))


@pytest.mark.fairseq2
def test_fairseq2_reads_what_was_written(exports, tmp_path):
    """Through its own loader of YAML, which is another, and its own of configurations."""
    from nllb_prune.on_fairseq2.card_reading import asset_card
    from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub

    for number, folder in enumerate(("mini", "mini-dense", exports(), exports(experts="int4"), exports(trimmed=True))):
        path, card = tmp_path / f"card-{number}.yaml", card_of(folder, name=f"a name {number}")
        path.write_text(card_text(card))
        read = asset_card(path)
        assert read.name == card["name"]
        assert {field: read.metadata.get(field) for field in card} == card | {"name": None}
        assert get_nllb_moe_model_hub().get_model_config(read) == of_folder(model_folder(folder))
