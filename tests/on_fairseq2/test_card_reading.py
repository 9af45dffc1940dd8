"""Cards by name and from files."""

from pathlib import Path

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.model.source import model_folder
from nllb_prune.on_fairseq2.card import card_of, card_text

pytestmark = pytest.mark.fairseq2


def read(path_or_name):
    from nllb_prune.on_fairseq2.card_reading import asset_card

    return asset_card(path_or_name)


def is_card(path_or_id):
    from nllb_prune.on_fairseq2.card_reading import is_card

    return is_card(path_or_id)


def written(folder, text, name="card.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("name", ["card.yaml", "card.yml"])
def test_the_only_card_of_a_file(kind, name, tmp_path):
    card = read(kind(written(tmp_path, card_text(card_of("mini", name="own")), name)))
    assert card.name == "own"
    assert card.field("checkpoint").as_uri().to_path() == model_folder("mini").resolve()
    assert card.base is None


def test_paths_of_a_file_are_relative_to_it(tmp_path):
    (tmp_path / "cards").mkdir()
    path = written(tmp_path / "cards", "name: own\nmodel_family: nllb_moe\ncheckpoint: ../model\n")
    assert read(path).field("checkpoint").as_uri().to_path().resolve() == tmp_path / "model"


def test_a_base_before_it(tmp_path):
    base = card_text(card_of("mini", name="base"))
    path = written(tmp_path, f"{base}---\nname: own\nbase: base\nmodel_config:\n  max_seq_len: 77\n")
    card = read(path)
    assert (card.name, card.base.name) == ("own", "base")
    assert card.field("model_family").as_(str) == "nllb_moe"

    from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub

    config = get_nllb_moe_model_hub().get_model_config(card)
    assert (config.max_seq_len, config.num_experts) == (77, 64)  # of both


def test_a_base_that_fairseq2_knows(tmp_path):
    card = read(written(tmp_path, "name: own\nbase: nllb-prune-mini\n"))
    assert card.base.name == "nllb-prune-mini"
    assert card.field("model_config").value["num_experts"] == 64


def test_a_base_of_a_base(tmp_path):
    text = "name: one\nbase: nllb-prune-mini\n---\nname: two\nbase: one\n---\nname: three\nbase: two\n"
    card = read(written(tmp_path, text))
    assert (card.name, card.base.base.base.name) == ("three", "nllb-prune-mini")


NO_CARDS = {
    "empty": ("", "is empty"),
    "only a comment": ("# nothing\n", "not have a name|is empty|expected to be of type"),
    "no mapping": ("- a\n- b\n", "expected to be of type"),
    "without a name": ("model_family: nllb_moe\n", "does not have a name"),
    "no YAML": ("name: [a\n", "cannot be loaded as YAML"),
    "a base that nobody knows": ("name: own\nbase: no-such-model\n", "no-such-model"),
    "a base after it": ("name: own\nbase: later\n---\nname: later\n", "later"),
    "itself as base": ("name: own\nbase: own\n", "own"),
    "a base without its own": ("name: own\nbase: librispeech_asr_100h\n", "wav2vec2_asr base asset .* does not exist"),
}


@pytest.mark.parametrize(("text", "reason"), NO_CARDS.values(), ids=NO_CARDS)
def test_what_is_no_card_is_said_in_a_line(text, reason, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(UsageError, match=rf"^`{path}` must hold an asset card of fairseq2, but .*({reason})") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"none\.yaml` must hold an asset card of fairseq2, but does not \(.*No such"):
        read(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match=r"must hold an asset card of fairseq2, but does not \("):
        read(tmp_path / "folder.yaml")


def test_cards_by_name():
    assert read("nllb-prune-mini-dense").name == "nllb-prune-mini-dense"
    for name in ("no-such-model", "librispeech_asr_100h"):  # fairseq2 has the latter, whose base it lacks
        with pytest.raises(UsageError, match=rf"`{name}` must hold an asset card of fairseq2, but does not \("):
            read(name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("nllb-prune-mini", True),
        ("nllb-200_dense_distill_600m", True),
        ("librispeech_asr_100h", True),
        ("mini", False),
        ("mini-dense", False),
        ("facebook/nllb-moe-54b", False),
        ("", False),
        ("somewhere/card.yaml", True),
        ("card.yml", True),
        (Path("card.yaml"), True),
    ],
    ids=repr,
)
def test_what_is_a_card(name, wanted):
    assert is_card(name) is wanted


@pytest.mark.parametrize("name", ["no-such-model", Path("nllb-prune-mini")], ids=repr)
def test_what_is_no_model_at_all(name):
    with pytest.raises(UsageError, match=r"or an asset of fairseq2 \(.*nllb-prune-mini-dense\), but is `"):
        is_card(name)


def test_a_folder_is_none_even_if_an_asset_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_card("nllb-prune-mini")
    (tmp_path / "nllb-prune-mini").mkdir()
    assert not is_card("nllb-prune-mini")
