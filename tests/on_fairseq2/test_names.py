"""What parameters are called on either side, held against fairseq2's modules and against checkpoints."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbMoeConfig, NllbMoeForConditionalGeneration

from nllb_prune.errors import UsageError
from nllb_prune.model.families import FAMILIES
from nllb_prune.model.source import model_folder
from tests.on_fairseq2.test_config import of_folder

pytestmark = pytest.mark.fairseq2

SIZES = {
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": 60,
    "max_position_embeddings": 16,
}
EMBEDDINGS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)


def stored(folder):
    """The names of the tensors in a folder's weight files."""
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def names_of_folder(folder, family):
    from nllb_prune.on_fairseq2.names import names_of

    config = of_folder(folder)
    return names_of(config, FAMILIES[family]), config


def in_transformers(names):
    """All that are needed, without the embedding."""
    return {*names.single.values(), *(name for each in names.stacked.values() for name in each.slots)}


def of_transformers(kind, **fields):
    """A model of transformers' own class, and our configuration of it."""
    from nllb_prune.model.families import family_of
    from nllb_prune.on_fairseq2.config import config_of

    classes = {
        "nllb-moe": (NllbMoeConfig, NllbMoeForConditionalGeneration),
        "m2m_100": (M2M100Config, M2M100ForConditionalGeneration),
    }
    theirs = classes[kind][0](**SIZES, **fields)
    with torch.device("meta"):
        model = classes[kind][1](theirs)
    return model, config_of(family_of(theirs), theirs, family_of(theirs).spec(theirs))


@pytest.mark.parametrize(
    ("folder", "family", "settings"),
    [
        ("mini", "nllb-moe", None),
        ("mini-dense", "m2m_100", None),
        ("export", "nllb-moe", {}),
        ("export", "nllb-moe", {"experts": "int8"}),
        ("export", "nllb-moe", {"experts": "int4"}),
    ],
    ids=lambda value: str(value),
)
def test_they_are_those_of_the_model_and_of_its_checkpoint(folder, family, settings, exports):
    from nllb_prune.on_fairseq2.factory import create_nllb_moe_model, sparse_path

    folder = model_folder(folder) if settings is None else exports(**settings)
    names, config = names_of_folder(folder, family)
    with torch.device("meta"):
        model = create_nllb_moe_model(config)
    ours = {*names.single, *names.stacked, "encoder_frontend.embed.weight"}
    assert ours == {name for name, _ in model.named_parameters()}
    assert in_transformers(names) == stored(folder) - set(EMBEDDINGS)
    assert names.embedding == EMBEDDINGS
    routers = {f"{sparse_path(each.name, layer)}.router_weight" for each in config.stacks for layer in each.layers}
    assert {name for name in ours if name.endswith(("router_weight", "router_bias"))} == routers
    for ours, each in names.stacked.items():
        assert len(each.slots) == len(model.get_parameter(ours))
        assert not set(each.slots) & set(each.others)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("nllb-moe", {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 1, "router_bias": True}),
        ("nllb-moe", {"num_experts": 4, "encoder_sparse_step": 1, "decoder_sparse_step": 0}),
        ("nllb-moe", {"num_experts": 4, "encoder_sparse_step": 0, "decoder_sparse_step": 0}),
        ("m2m_100", {}),
    ],
    ids=str,
)
def test_they_are_those_of_transformers_own_classes(kind, fields):
    from nllb_prune.on_fairseq2.names import check_names, family_of_names, names_of

    theirs, config = of_transformers(kind, second_expert_policy="all", moe_eval_capacity_token_fraction=1.0, **fields)
    there = theirs.state_dict().keys()
    names = names_of(config, FAMILIES[kind])
    assert in_transformers(names) == there - set(EMBEDDINGS)
    assert family_of_names(there) is FAMILIES[kind]
    assert check_names(names, there) == "model.shared.weight"


def test_names_of_no_family_are_none():
    from nllb_prune.on_fairseq2.names import family_of_names

    assert family_of_names(()) is None
    assert family_of_names({"encoder.layers.0.ffn_layer_norm.weight"}) is None


def test_each_expert_is_in_its_slot(exports, masks):
    names, _ = names_of_folder(exports(), "nllb-moe")
    ids = masks.direction("eng_Latn", "deu_Latn")["encoder"][1]
    each = names.stacked["encoder.layers.3.ffn.sparse.bank.fc2_bias"]
    assert each.slots == tuple(f"model.encoder.layers.3.ffn.experts.expert_{n}.fc2.bias" for n in ids)
    assert sorted({*each.slots, *each.others}) == sorted(
        f"model.encoder.layers.3.ffn.experts.expert_{n}.fc2.bias" for n in range(64)
    )


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_any_name_of_the_embedding_will_do(embedding):
    from nllb_prune.on_fairseq2.names import check_names

    names, _ = names_of_folder(model_folder("mini"), "nllb-moe")
    there = in_transformers(names) | {embedding}
    assert check_names(names, there) == embedding
    assert check_names(names, there | {"model.encoder.embed_positions.weights"}) == embedding  # as old files have it
    with pytest.raises(UsageError, match=r"must hold `model\.shared\.weight`, but does not; it is incomplete or of a"):
        check_names(names, there - {embedding})


def test_what_was_left_out_may_be_there_all_the_same(exports):
    """A card may keep fewer experts than the folder it points to has."""
    from nllb_prune.on_fairseq2.names import check_names

    names, _ = names_of_folder(exports(), "nllb-moe")
    assert check_names(names, stored(model_folder("mini"))) in EMBEDDINGS


@pytest.mark.parametrize("parts", ["layer norm", "router", "expert"])
def test_the_first_name_that_is_missing_is_told(parts):
    from nllb_prune.on_fairseq2.names import check_names

    names, _ = names_of_folder(model_folder("mini"), "nllb-moe")
    missing = {
        "layer norm": "model.decoder.layers.0.cross_attention_layer_norm.bias",
        "router": "model.encoder.layers.5.ffn.router.classifier.weight",
        "expert": "model.decoder.layers.2.ffn.experts.expert_63.fc1.weight",
    }[parts]
    with pytest.raises(UsageError) as error:
        check_names(names, stored(model_folder("mini")) - {missing})
    assert str(error.value) == (
        f"The checkpoint must hold `{missing}`, but does not; it is incomplete or of another model."
    )


def test_names_too_many_are_counted():
    from nllb_prune.on_fairseq2.names import check_names, names_of

    names, config = names_of_folder(model_folder("mini"), "nllb-moe")
    there = stored(model_folder("mini"))
    with pytest.raises(UsageError, match=r"but holds 2 others, first `model\.another`\.$"):
        check_names(names, there | {"model.more", "model.another"})
    fewer = dataclasses.replace(config, num_experts=63)
    with pytest.raises(UsageError, match=r"but holds 24 others, first `model\.decoder\.layers\.0\..*expert_63\.fc1\.b"):
        check_names(names_of(fewer, FAMILIES["nllb-moe"]), there)  # 4 tensors of each of 6 layers
    more = dataclasses.replace(config, num_experts=65)
    with pytest.raises(UsageError, match=r"must hold `model\.encoder\.layers\.1\..*expert_64\.fc1\.weight`, but does"):
        check_names(names_of(more, FAMILIES["nllb-moe"]), there)
