"""Models of folders, exports and asset cards as the backend fairseq2 loads them, against transformers' side."""

import dataclasses
import shutil

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.generation.translate import translations
from nllb_prune.masks import MaskSet
from nllb_prune.model import loading as on_transformers
from nllb_prune.model.describe import load_spec
from nllb_prune.model.routing import routing_of
from nllb_prune.on_fairseq2.card import card_of, card_text
from tests.on_fairseq2.dense import save_dense_cards
from tests.on_fairseq2.sides import CPU, assert_equal, assert_same, lines

pytestmark = pytest.mark.fairseq2

PAIR = ("eng_Latn", "deu_Latn")
BACKEND = "fairseq2 0.8.1"


@pytest.fixture(scope="module")
def loading():
    from nllb_prune.on_fairseq2 import loading

    return loading


@pytest.fixture(scope="module")
def dense_cards(tmp_path_factory):
    return save_dense_cards(tmp_path_factory.mktemp("dense"))


def output(model, tokenizer, count=8, direction=PAIR, **how):
    source, target = direction
    found = translations(model, tokenizer, lines(source, "test")[:count], source=source, target=target, **how)
    return [best[0].text for best in found]


def facts(model):
    """Return what results depend on, the backend apart."""
    state = routing_of(model)
    return state.name, state.identity, state.spec, state.resident, state.pruning, next(model.parameters()).dtype


@pytest.mark.parametrize("name", ["mini", "mini-dense"])
def test_a_whole_model(name, loading):
    model = loading.load_model(name)
    assert facts(model) == facts(on_transformers.load_model(name))
    assert routing_of(model).backend == BACKEND
    assert not any(each.requires_grad for each in model.parameters())


def test_facts(loading):
    ours, theirs = on_transformers.load_facts("mini"), loading.load_facts("mini")
    assert theirs == dataclasses.replace(ours, backend=BACKEND)


def test_by_the_name_of_an_asset(loading, pairs, mini):
    model = loading.load_model("nllb-prune-mini")
    assert facts(model)[1:] == facts(mini)[1:]
    assert routing_of(model).name == "nllb-prune-mini"
    assert_equal(model.inner, mini, pairs)


def test_by_a_card_in_a_file(loading, pairs, mini, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(card_text(card_of("mini", name="own")), encoding="utf-8")
    for given in (path, str(path)):
        model = loading.load_model(given)
        assert facts(model)[1:] == facts(mini)[1:]
    assert_equal(model.inner, mini, pairs)


def test_within_masks_only_the_kept_experts_are_held(loading, masks, pairs):
    ours = on_transformers.load_model("mini", masks=masks, direction=PAIR)
    model = loading.load_model("mini", masks=masks, direction=PAIR)
    assert facts(model) == facts(ours)
    assert routing_of(model).resident == masks.direction(*PAIR)
    sizes = [sum(each.numel() for each in side.parameters()) for side in (ours, model)]
    assert sizes[0] == sizes[1]
    assert_equal(model.inner, ours, pairs)


@pytest.mark.parametrize(
    ("directions", "settings"),
    [
        ([PAIR], {}),
        ([PAIR, ("spa_Latn", "tur_Latn")], {}),
        ([PAIR, ("spa_Latn", "tur_Latn")], {"parts": True}),
        ([PAIR], {"experts": "int8"}),
        ([PAIR], {"experts": "int4"}),
        ([PAIR], {"dtype": torch.bfloat16}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else str(len(value)),
)
def test_exports(loading, exports, pairs, directions, settings):
    folder = exports(directions, **settings)
    ours, model = on_transformers.load_model(folder), loading.load_model(folder)
    assert facts(model) == facts(ours)
    assert loading.load_spec(folder) == load_spec(folder)
    assert loading.in_parts(folder) == settings.get("parts", False)
    assert_equal(model.inner, ours, pairs)


def test_an_export_by_its_card(loading, exports, tmp_path):
    path = tmp_path / "pruned.yaml"
    path.write_text(card_text(card_of(exports([PAIR]))), encoding="utf-8")
    assert facts(loading.load_model(path))[1:] == facts(loading.load_model(exports([PAIR])))[1:]
    assert not loading.in_parts(path)


def test_of_parts_only_those_of_the_direction_are_read(loading, exports, tmp_path, pairs):
    whole = exports([PAIR, ("spa_Latn", "tur_Latn")], parts=True)
    folder = shutil.copytree(whole, tmp_path / "parts")
    gone = [path for path in folder.iterdir() if "spa_Latn" in path.name or "tur_Latn" in path.name]
    assert gone
    for path in gone:
        path.unlink()
    model = loading.load_model(folder, direction=PAIR)
    ours = on_transformers.load_model(folder, direction=PAIR)
    assert facts(model) == facts(ours)
    assert_equal(model.inner, ours, pairs)
    with pytest.raises(UsageError):
        loading.load_model(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", torch.float32])
@pytest.mark.parametrize("name", ["mini", "nllb-prune-mini"])
def test_dtypes(name, dtype, loading):
    model = loading.load_model(name, dtype=dtype)
    expected = on_transformers.load_model("mini", dtype=dtype)
    assert facts(model)[1:] == facts(expected)[1:]
    assert facts(model)[-1] == (dtype if isinstance(dtype, torch.dtype) else torch.bfloat16)
    routers = [[each for name, each in side.named_parameters() if "router" in name] for side in (model, expected)]
    assert len(routers[0]) == len(routers[1]) == 6
    for ours, theirs in zip(*routers, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["mini", "mini-dense", "export", "int8"])
def test_bfloat16_is_the_same_to_the_bit(name, loading, exports, pairs):
    folders = {"export": {}, "int8": {"experts": "int8"}}
    model = exports([PAIR], **folders[name]) if name in folders else name
    there, here = (side.load_model(model, dtype="bfloat16") for side in (loading, on_transformers))
    assert_equal(there.inner, here, pairs)


@pytest.mark.parametrize("layout", ["fairseq", "fairseq2"])
def test_dense_models_of_their_own_family(layout, loading, dense_cards, mini_dense, tokenizer, pairs):
    from nllb_prune.on_fairseq2.card_tokenizer import load_tokenizer

    path = dense_cards / f"{layout}.yaml"
    model = loading.load_model(path)
    assert facts(model)[2:] == facts(mini_dense)[2:]
    assert routing_of(model).name == f"dense-{layout}"
    assert_equal(model.inner, mini_dense, pairs)
    assert output(model, load_tokenizer(path)) == output(mini_dense, tokenizer)
    with pytest.raises(UsageError, match=f"`dense-{layout}` is a dense model .*nothing to prune"):
        loading.load_spec(path)


@pytest.mark.parametrize("layout", ["fairseq", "fairseq2"])
def test_fairseq2_itself_makes_the_same_of_them(layout, dense_cards, mini_dense, pairs):
    """By its own factory and its own conversion of names: so such a card is one of its models."""
    from fairseq2.models import load_model as fairseq2_load_model

    from nllb_prune.on_fairseq2.card_reading import asset_card

    model = fairseq2_load_model(asset_card(dense_cards / f"{layout}.yaml"), device=CPU, dtype=torch.float32).eval()
    assert_same(model, mini_dense, pairs)


def test_masks_need_a_sparse_card(loading, dense_cards, masks):
    with pytest.raises(UsageError, match="is a dense model"):
        loading.load_model(dense_cards / "fairseq.yaml", masks=masks, direction=PAIR)


def test_masks_with_a_card(loading, masks, tokenizer):
    """All experts are loaded; which are used is up to the call."""
    model = loading.load_model("nllb-prune-mini", masks=masks, direction=PAIR)
    assert routing_of(model).resident is None
    pruned = on_transformers.load_model("mini", masks=masks, direction=PAIR)
    assert output(model, tokenizer, masks=masks) == output(pruned, tokenizer)


def test_masks_of_another_model(loading, masks):
    other = MaskSet(
        model_name="other",
        fingerprint=dataclasses.replace(masks.fingerprint, table="0" * 16),
        stacks=masks.stacks,
        granularity="language",
        masks=masks.masks,
    )
    for name in ("mini", "nllb-prune-mini"):
        with pytest.raises(UsageError, match="masks"):
            loading.load_model(name, masks=other, direction=PAIR)


def test_a_direction_of_a_card_needs_masks(loading):
    with pytest.raises(UsageError, match="`direction` must come with masks where `nllb-prune-mini` is an asset card"):
        loading.load_model("nllb-prune-mini", direction=PAIR)


CARD = "name: own\nmodel_family: nllb_moe\n"


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("name: own\ncheckpoint: here\n", "own asset card is missing a model definition"),
        ("name: own\nmodel_family: none\ncheckpoint: here\n", "none is not a known model family"),
        (
            "name: own\nmodel_family: llama\ncheckpoint: here\n",
            "`own` must be of the family nllb_moe or nllb, but",
        ),
        (CARD, "`own` must name a checkpoint in its asset card, but names none"),
        (
            CARD + "checkpoint: ./nowhere\n",
            "`checkpoint` of the asset card `own` must be there, but `.*nowhere` is not",
        ),
        (
            CARD + "checkpoint: gopher://nowhere\n",
            "must be a supported URI scheme, but is gopher instead",
        ),
        (CARD + "checkpoint: here\nmodel_arch: big\n", "supported model architecture, but is big instead"),
        (CARD + "checkpoint: here\nmodel_config: {size: 3}\n", r"it contains extra key\(s\) size"),
        (CARD + "checkpoint: here\nmodel_config: {model_dim: wide}\n", "wide|int"),
        (CARD + "checkpoint: https://localhost:1/x.pt\n", "Download of https://localhost:1/x.pt failed"),
    ],
    ids=lambda value: value[:40] if "model_family" in value or "name: own" in value else None,
)
def test_cards_that_cannot_be_loaded(card, message, loading, tmp_path):
    """In one line, whichever of fairseq2's errors it was."""
    path = tmp_path / "own.yaml"
    path.write_text(card, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as error:
        loading.load_model(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_damaged(loading, tmp_path):
    (tmp_path / "own.pt").write_bytes(b"nothing of the kind")
    path = tmp_path / "own.yaml"
    path.write_text(CARD + "checkpoint: own.pt\n", encoding="utf-8")
    with pytest.raises(UsageError):
        loading.load_model(path)


def test_a_checkpoint_of_another_size(loading, tmp_path):
    fields = card_of("mini", name="own")
    fields["model_config"] = {**fields["model_config"], "num_encoder_layers": 8}
    path = tmp_path / "own.yaml"
    path.write_text(card_text(fields), encoding="utf-8")
    with pytest.raises(UsageError, match="6"):
        loading.load_model(path)


@pytest.mark.parametrize("name", ["nothing", "./nothing", "a/b/c"])
def test_what_is_no_model(name, loading):
    """It says what there is: embedded models, folders, Hub ids, cards, and the assets that can be loaded."""
    from nllb_prune.on_fairseq2.card_tokenizer import load_tokenizer

    for load in (loading.load_model, loading.load_spec, loading.load_facts, loading.in_parts, load_tokenizer):
        with pytest.raises(UsageError) as error:
            load(name)
        text = str(error.value)
        assert text.startswith("`model` must be mini, mini-dense, a folder, a Hub id (`owner/name`), a .yaml file")
        assert "nllb-200_dense_1b" in text
        assert "nllb-prune-mini, nllb-prune-mini-dense), but is `" in text
        assert text.endswith(f"but is `{name}` instead.")
        assert "llama" not in text


def test_a_folder_goes_before_an_asset(loading, exports, tmp_path, monkeypatch):
    shutil.copytree(exports([PAIR]), tmp_path / "nllb-prune-mini")
    monkeypatch.chdir(tmp_path)
    assert routing_of(loading.load_model("nllb-prune-mini")).pruning is not None
