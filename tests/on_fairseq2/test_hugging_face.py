"""What fairseq2 saves for Hugging Face is loaded by transformers' own classes, and by ours."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, M2M100ForConditionalGeneration, NllbMoeForConditionalGeneration

from nllb_prune import load_model
from nllb_prune.errors import UsageError
from nllb_prune.model.source import model_folder, read_config
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from tests.on_fairseq2.sides import Pairs, assert_same, load_by_card, transformers_states
from tests.on_fairseq2.test_config import of_folder
from tests.on_fairseq2.test_factory import DENSE, SPARSE, filled
from tests.on_fairseq2.test_names import EMBEDDINGS

pytestmark = pytest.mark.fairseq2

CLASSES = {"mini": NllbMoeForConditionalGeneration, "mini-dense": M2M100ForConditionalGeneration}
SPECIAL = {"architectures", "transformers_version", "torch_dtype", "dtype"}
WHOLE = dataclasses.replace(SPARSE, encoder_sparse_layers=[2], encoder_experts=None, decoder_experts=None)


def converter():
    from fairseq2.models.hg import get_hugging_face_converter

    return get_hugging_face_converter("nllb_moe")


def saved(state_dict, config, folder):
    from fairseq2.models.hg import save_hugging_face_model

    theirs = converter().to_hg_config(config)
    save_hugging_face_model(folder, converter().to_hg_state_dict(state_dict, config), theirs)
    return folder


@pytest.fixture(scope="module", params=CLASSES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """An embedded model, through fairseq2."""
    state_dict = load_by_card(name).state_dict()
    return saved(state_dict, of_folder(model_folder(name)), tmp_path_factory.mktemp("saved") / name)


def test_a_model_there_and_back(name, folder, pairs, request):
    stock = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    assert type(stock) is CLASSES[name]
    wanted = transformers_states(request.getfixturevalue(name.replace("-", "_")), pairs)
    for model in (stock, load_model(folder)):
        for ours, theirs in zip(transformers_states(model, pairs), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_files_hold_what_the_model_held(name, folder):
    (path,) = folder.glob("*.safetensors")
    ours, wanted = load_file(path), load_file(model_folder(name) / "model.safetensors")
    wanted = {n: t.float() for n, t in wanted.items() if n not in EMBEDDINGS[1:]}
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    size = sum(tensor.numel() * 4 for tensor in wanted.values())
    assert size < path.stat().st_size < 1.01 * size


def test_the_configuration_is_that_of_the_folder(name, folder):
    """Each field but the number of positions, and what is for training."""
    config = of_folder(folder)
    assert config == of_folder(model_folder(name))
    ours, theirs = read_config(folder).to_dict(), read_config(model_folder(name)).to_dict()
    differ = {field for field in ours.keys() | theirs.keys() if ours.get(field) != theirs.get(field)} - SPECIAL
    assert differ <= {"max_position_embeddings", "encoder_layerdrop", "decoder_layerdrop", "_name_or_path"}
    assert ours["max_position_embeddings"] == config.max_seq_len
    assert json.loads((folder / "config.json").read_text())["architectures"] == [CLASSES[name].__name__]


@pytest.mark.parametrize(
    "changes",
    [
        {"router_bias": True},
        {"activation": "gelu", "scale_embedding": False},
        {"encoder_sparse_layers": [], "decoder_sparse_layers": [0, 1]},
        {"encoder_sparse_layers": [0, 1, 2], "decoder_sparse_layers": []},
        {"encoder_experts": [list(range(8))]},
    ],
    ids=str,
)
def test_every_field_reaches_transformers(changes, tmp_path):
    config = dataclasses.replace(WHOLE, **changes)
    model = filled(config)
    stock = AutoModelForSeq2SeqLM.from_pretrained(saved(model.state_dict(), config, tmp_path / "saved")).eval()
    rows = torch.randint(4, 96, (2, 3, 9), generator=torch.Generator().manual_seed(0)).tolist()
    assert_same(model, stock, Pairs(rows[0], [row[:5] for row in rows[1]]))


REFUSED = {
    "pruned": (SPARSE, "must have all its experts to become one of transformers' classes, .* `nllb-prune export`"),
    "a side pruned": (
        dataclasses.replace(WHOLE, decoder_experts=[[0, 1]]),
        "must have all its experts to become one of transformers' classes",
    ),
    "quantised": (dataclasses.replace(WHOLE, expert_bits=8), "must be floats for transformers' classes, but are quant"),
    "uneven": (
        dataclasses.replace(WHOLE, encoder_sparse_layers=[0, 2]),
        r"Sparse layers must be every n-th for transformers' classes, but are \[0, 2\] instead",
    ),
    "from the second on": (
        dataclasses.replace(WHOLE, encoder_sparse_layers=[1, 2]),
        r"must be every n-th for transformers' classes, but are \[1, 2\] instead",
    ),
    "not to the end": (
        dataclasses.replace(WHOLE, encoder_sparse_layers=[0]),
        r"must be every n-th for transformers' classes, but are \[0\] instead",
    ),
}


@pytest.mark.parametrize(("config", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_class_of_transformers_is_like(config, message):
    with pytest.raises(UsageError, match=message) as error:
        converter().to_hg_config(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [SPARSE, dataclasses.replace(WHOLE, expert_bits=8)], ids=["pruned", "quantised"])
def test_nor_is_its_state_dictionary(config):
    with pytest.raises(UsageError, match="transformers' classes"):
        converter().to_hg_state_dict({}, config)


def test_configurations_of_other_families():
    from fairseq2.models.nllb import NllbConfig

    for convert in (converter().to_hg_config, lambda config: converter().to_hg_state_dict({}, config)):
        with pytest.raises(TypeError, match=r"`config` must be of type .*NllbMoeConfig.*, but is of type .*NllbConfig"):
            convert(NllbConfig())


def test_the_architecture_by_default_is_that_of_the_hub():
    """Fields of `facebook/nllb-moe-54b`."""
    theirs = converter().to_hg_config(NllbMoeConfig())
    assert (theirs.kls_name, theirs.arch) == ("NllbMoeConfig", "NllbMoeForConditionalGeneration")
    assert {
        "d_model": 2048,
        "vocab_size": 256206,
        "encoder_layers": 24,
        "decoder_layers": 24,
        "encoder_ffn_dim": 8192,
        "decoder_ffn_dim": 8192,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_sparse_step": 4,
        "decoder_sparse_step": 4,
        "num_experts": 128,
        "router_bias": False,
        "moe_token_dropout": pytest.approx(0.2),
        "activation_function": "relu",
        "scale_embedding": True,
    }.items() <= {**theirs.data, "moe_token_dropout": pytest.approx(theirs.data["moe_token_dropout"])}.items()


def test_a_dense_model_has_no_fields_of_routers():
    theirs = converter().to_hg_config(DENSE)
    assert theirs.kls_name == "M2M100Config"
    assert not any("expert" in field or "router" in field or "sparse" in field for field in theirs.data)
