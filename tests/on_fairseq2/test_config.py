"""What a folder says of a model, as a configuration for fairseq2."""

import dataclasses
import json
import shutil

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.generation.translate import length_limit
from nllb_prune.model.families import family_of
from nllb_prune.model.pruned import pruning_of
from nllb_prune.model.source import model_folder, read_config
from nllb_prune.model.spec import Stack
from nllb_prune.on_fairseq2.config import LONGEST, NllbMoeConfig, config_of
from nllb_prune.tokenization import MAX_LENGTH

TWO_AND_THREE = NllbMoeConfig(
    num_experts=8,
    encoder_sparse_layers=[1, 3],
    decoder_sparse_layers=[0, 2, 3],
    encoder_experts=[[0, 3, 7], [1, 2]],
    decoder_experts=[[0, 1], [0, 1, 2, 3, 4, 5, 6, 7], [2, 5, 6]],
)


def of_folder(folder, **options):
    config = read_config(folder)
    family = family_of(config)
    spec = family.spec(config)
    return config_of(family, config, spec, pruning=pruning_of(config, spec), **options)


def test_mini_and_the_dense_one():
    dense = NllbMoeConfig(
        model_dim=160,
        vocab_size=6012,
        num_encoder_layers=6,
        num_decoder_layers=3,
        num_encoder_attn_heads=4,
        num_decoder_attn_heads=4,
        encoder_ffn_inner_dim=256,
        decoder_ffn_inner_dim=256,
        num_experts=0,
        encoder_sparse_layers=[],
        decoder_sparse_layers=[],
        top_k=0,
        expert_output_scale=1.0,
    )
    assert of_folder(model_folder("mini-dense")) == dense
    assert (dense.stacks, dense.kept, dense.scheme) == ((), None, None)
    assert of_folder(model_folder("mini")) == dataclasses.replace(
        dense,
        encoder_ffn_inner_dim=128,
        decoder_ffn_inner_dim=128,
        num_experts=64,
        encoder_sparse_layers=[1, 3, 5],
        decoder_sparse_layers=[0, 1, 2],
        top_k=2,
        expert_output_scale=0.6,
    )


@pytest.mark.parametrize("name", ["mini", "mini-dense"])
def test_it_is_the_model_that_the_pruner_sees(name):
    config = read_config(model_folder(name))
    assert of_folder(model_folder(name)).spec == family_of(config).spec(config)


@pytest.mark.parametrize(("experts", "bits", "group"), [(None, None, None), ("int8", 8, None), ("int4", 4, 64)])
def test_an_export_says_which_experts_it_holds_and_how(experts, bits, group, exports, masks):
    config = of_folder(exports(**({} if experts is None else {"experts": experts})))
    direction = masks.direction("eng_Latn", "deu_Latn")
    assert config.kept == direction
    assert config.encoder_experts == [list(ids) for ids in direction["encoder"]]
    assert len({len(ids) for ids in config.encoder_experts + config.decoder_experts}) > 3
    assert config.expert_bits == bits
    assert (config.scheme is None) == (experts is None)
    if experts is not None:
        stored = pruning_of(read_config(exports(experts=experts))).scheme
        assert (config.scheme.bits, config.scheme.group) == (stored.bits, stored.group) == (bits, group)


def test_experts_to_keep_come_before_those_of_the_folder(exports, masks):
    folder = exports([("eng_Latn", "deu_Latn"), ("eng_Latn", "hin_Deva")])
    kept = masks.direction("eng_Latn", "hin_Deva")
    assert of_folder(folder, kept=kept).kept == kept != of_folder(folder).kept
    assert of_folder(model_folder("mini"), kept=kept).kept == kept


def test_layers_keep_what_is_said():
    assert TWO_AND_THREE.stacks == (
        Stack("encoder", "source", (1, 3), 8),
        Stack("decoder", "target", (0, 2, 3), 8),
    )
    assert TWO_AND_THREE.kept == {
        "encoder": ((0, 3, 7), (1, 2)),
        "decoder": ((0, 1), tuple(range(8)), (2, 5, 6)),
    }


def test_a_side_of_which_nothing_is_said_is_whole():
    one = dataclasses.replace(TWO_AND_THREE, encoder_experts=None)
    assert one.kept == {"encoder": (tuple(range(8)),) * 2, "decoder": TWO_AND_THREE.kept["decoder"]}
    assert dataclasses.replace(one, decoder_experts=None).kept is None


@pytest.mark.parametrize(
    "wrong",
    [
        [[0, 3, 7]],
        [[0, 3, 7], [1, 2], [1, 2]],
        [[0, 3, 7], [1]],
        [[0, 3, 7], []],
        [[0, 3, 7], [2, 1]],
        [[0, 3, 7], [1, 1, 2]],
        [[0, 3, 8], [1, 2]],
        [[-1, 3, 7], [1, 2]],
    ],
    ids=["a layer too few", "a layer too many", "too few", "none", "not sorted", "twice", "too large", "negative"],
)
def test_experts_that_cannot_be_are_refused(wrong):
    config = dataclasses.replace(TWO_AND_THREE, encoder_experts=wrong)
    with pytest.raises(UsageError) as error:
        _ = config.kept
    assert str(error.value) == (
        "`encoder_experts` must be 2 or more sorted expert numbers below 8 for each of 2 layers, but are not; write "
        "the asset card anew with `nllb-prune card`."
    )


def test_positions_suffice_for_the_longest_translation():
    assert LONGEST == NllbMoeConfig().max_seq_len >= length_limit(MAX_LENGTH) + 2
    assert of_folder(model_folder("mini")).max_seq_len == LONGEST > read_config(model_folder("mini")).d_model


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [("max_position_embeddings", 4096, 4096), ("max_position_embeddings", 8, LONGEST)],
)
def test_more_positions_are_kept(field, value, wanted, tmp_path):
    assert of_folder(changed(tmp_path, **{field: value})).max_seq_len == wanted


def changed(folder, **fields):
    shutil.copy(model_folder("mini") / "config.json", folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | fields))
    return folder


def test_each_field_of_the_folder_counts(tmp_path):
    folder = changed(
        tmp_path,
        activation_function="gelu",
        scale_embedding=False,
        router_bias=True,
        encoder_attention_heads=8,
        decoder_ffn_dim=64,
        decoder_sparse_step=0,
    )
    config, usual = of_folder(folder), of_folder(model_folder("mini"))
    assert config == dataclasses.replace(
        usual,
        activation="gelu",
        scale_embedding=False,
        router_bias=True,
        num_encoder_attn_heads=8,
        decoder_ffn_inner_dim=64,
        decoder_sparse_layers=[],
    )


def test_what_fairseq2_cannot_make_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match="`tie_word_embeddings` of the configuration must be true for fairseq2, but is"
    ):
        of_folder(changed(tmp_path, tie_word_embeddings=False))
    config = read_config(model_folder("mini"))
    other = dataclasses.replace(family_of(config), layer_names=None)
    with pytest.raises(UsageError, match=r"must be an encoder and a decoder as M2M-100 has them .* use the default"):
        config_of(other, config, other.spec(config))
