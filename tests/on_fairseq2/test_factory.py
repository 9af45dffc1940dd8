"""The factory's models: fairseq2's own where they are dense, banks of the experts that are kept where they are not."""

import copy
import dataclasses

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.on_fairseq2.config import NllbMoeConfig

pytestmark = pytest.mark.fairseq2

DENSE = NllbMoeConfig(
    model_dim=32,
    max_seq_len=40,
    vocab_size=96,
    num_encoder_layers=3,
    num_decoder_layers=2,
    num_encoder_attn_heads=4,
    num_decoder_attn_heads=8,
    encoder_ffn_inner_dim=48,
    decoder_ffn_inner_dim=48,
    num_experts=0,
    encoder_sparse_layers=[],
    decoder_sparse_layers=[],
    top_k=0,
    expert_output_scale=1.0,
)
SPARSE = dataclasses.replace(
    DENSE,
    num_experts=8,
    encoder_sparse_layers=[0, 2],
    decoder_sparse_layers=[1],
    decoder_ffn_inner_dim=40,
    top_k=2,
    expert_output_scale=0.8,
    encoder_experts=[[0, 3, 7], [1, 2]],
    decoder_experts=[[0, 2, 4, 5, 6]],
)


def filled(config, seed=0):
    from nllb_prune.on_fairseq2.factory import create_nllb_moe_model

    torch.manual_seed(seed)
    model = create_nllb_moe_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def batch():
    from fairseq2.nn import BatchLayout

    torch.manual_seed(1)
    source, target = torch.randint(4, 96, (3, 11)), torch.randint(4, 96, (3, 7))
    return source, BatchLayout.of(source, [11, 4, 9]), target, BatchLayout.of(target, [5, 7, 2])


def test_a_dense_model_is_fairseq2s_own():
    from fairseq2.models.nllb import NllbConfig, create_nllb_model

    ours = filled(DENSE)
    own = create_nllb_model(
        NllbConfig(
            model_dim=32,
            max_seq_len=40,
            vocab_size=96,
            num_encoder_layers=3,
            num_decoder_layers=2,
            num_encoder_attn_heads=4,
            num_decoder_attn_heads=8,
            ffn_inner_dim=48,
            dropout_p=0.0,
        )
    ).eval()
    assert type(ours) is type(own)
    shapes = [{name: each.shape for name, each in model.state_dict().items()} for model in (ours, own)]
    assert shapes[0] == shapes[1]
    own.load_state_dict(ours.state_dict())
    own.decoder_frontend.pos_encoder.freqs.copy_(ours.decoder_frontend.pos_encoder.table)  # rounded as fairseq does
    with torch.inference_mode():
        assert torch.equal(ours(*batch()), own(*batch()))
        ours.train(), own.train()  # no dropout is left anywhere
        assert torch.equal(ours(*batch()), own(*batch()))


def test_the_embedding_is_one_tensor():
    model = filled(SPARSE)
    assert model.encoder_frontend.embed.weight is model.decoder_frontend.embed.weight is model.final_proj.weight
    assert model.encoder_frontend.embed.pad_idx == model.pad_idx == 0


def test_each_layer_has_room_for_its_own_experts_alone():
    shapes = {name: tuple(each.shape) for name, each in filled(SPARSE).named_parameters()}
    for path, slots, ffn in (
        ("encoder.layers.0.ffn.sparse", 3, 48),
        ("encoder.layers.2.ffn.sparse", 2, 48),
        ("decoder.layers.1.ffn.sparse", 5, 40),
    ):
        assert shapes.pop(f"{path}.router_weight") == (8, 32)
        assert shapes.pop(f"{path}.bank.fc1_weight") == (slots, ffn, 32)
        assert shapes.pop(f"{path}.bank.fc1_bias") == (slots, ffn)
        assert shapes.pop(f"{path}.bank.fc2_weight") == (slots, 32, ffn)
        assert shapes.pop(f"{path}.bank.fc2_bias") == (slots, 32)
    assert not any("sparse" in name for name in shapes)
    assert shapes["encoder.layers.1.ffn.inner_proj.weight"] == (48, 32)
    assert shapes["decoder.layers.0.ffn.inner_proj.weight"] == (40, 32)


def test_a_router_has_a_bias_where_it_is_asked_for():
    names = {name for name, _ in filled(dataclasses.replace(SPARSE, router_bias=True)).named_parameters()}
    assert names - {name for name, _ in filled(SPARSE).named_parameters()} == {
        f"{layer}.ffn.sparse.router_bias" for layer in ("encoder.layers.0", "encoder.layers.2", "decoder.layers.1")
    }


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, None), (4, 16)])
def test_experts_of_few_bits(bits, group):
    from nllb_prune.on_fairseq2.factory import create_nllb_moe_model

    model = create_nllb_moe_model(dataclasses.replace(SPARSE, expert_bits=bits, expert_group=group))
    parameters = dict(model.encoder.layers[0].ffn.sparse.bank.named_parameters())
    numbers = parameters["fc1_weight" if bits == 8 else "fc1_weight_packed"]
    assert numbers.dtype == (torch.int8 if bits == 8 else torch.int32)
    assert numbers.shape == (3, 48, 32 * bits // (8 if bits == 8 else 32))
    assert parameters["fc1_weight_scale"].shape == (3, 48, 1 if group is None else 2)
    assert parameters["fc1_weight_scale"].dtype == torch.float32  # the default dtype, as fairseq2 sets it


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_dense_layers_and_experts_have_the_same_activation(activation):
    model = filled(dataclasses.replace(SPARSE, activation=activation))
    states = torch.linspace(-3, 3, 32)
    wanted = getattr(torch.nn.functional, activation)(states)
    assert torch.equal(model.encoder.layers[1].ffn.inner_activation(states), wanted)
    assert torch.equal(model.encoder.layers[0].ffn.sparse.bank.activation(states), wanted)


def test_an_activation_that_nobody_knows():
    with pytest.raises(UsageError, match="`activation` must be one of relu, gelu, silu, but is tanh instead"):
        filled(dataclasses.replace(SPARSE, activation="tanh"))


def test_the_scale_of_embeddings():
    source, layout, _, _ = batch()
    scaled, plain = (
        filled(dataclasses.replace(DENSE, scale_embedding=scaled)).encoder_frontend for scaled in (True, False)
    )
    nothing = torch.zeros(3, 11, 32)
    positions = plain.pos_encoder(nothing, layout)
    with torch.inference_mode():
        by_scale = scaled(source, layout)[0] - positions
        torch.testing.assert_close(by_scale, (plain(source, layout)[0] - positions) * 32**0.5, atol=1e-5, rtol=1e-5)


def test_a_copy_follows_its_own_calls():
    """Each copy of a model tells its own sparse layers of padding."""
    model = filled(SPARSE)
    again = copy.deepcopy(model)
    source, layout, target, target_layout = batch()
    with torch.inference_mode():
        wanted = model(source, layout, target, target_layout)
        again(source[:1, :5], type(layout).of(source[:1, :5]), target[:1, :2], type(layout).of(target[:1, :2]))
        assert torch.equal(again(source, layout, target, target_layout), wanted)
        assert torch.equal(model(source, layout, target, target_layout), wanted)
    stacks = [each.expert_routing.stacks["encoder"] for each in (model, again)]
    assert stacks[0] is not stacks[1]
    assert again.encoder.layers[0].ffn.sparse.routing is stacks[1]
