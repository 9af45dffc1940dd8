"""State dictionaries of every layout there is, and back."""

import dataclasses
import re
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nllb_prune.errors import UsageError
from nllb_prune.model.families import FAMILIES
from nllb_prune.model.quantisation import quantised
from nllb_prune.model.scheme import Scheme
from nllb_prune.model.source import model_folder
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from tests.on_fairseq2.test_config import of_folder
from tests.on_fairseq2.test_factory import DENSE, SPARSE, filled
from tests.on_fairseq2.test_names import EMBEDDINGS
from tests.weights import test_original_layout as original

pytestmark = pytest.mark.fairseq2

MINI, MINI_DENSE = (of_folder(model_folder(name)) for name in ("mini", "mini-dense"))
TENSORS = load_file(model_folder("mini") / "model.safetensors")
DENSE_TENSORS = load_file(model_folder("mini-dense") / "model.safetensors")
SPARSE_NAME = "model.encoder.layers.1.ffn.experts.expert_{}.fc1.weight"


class Counted(Mapping):
    """Counts how often each of its tensors is read."""

    def __init__(self, tensors):
        self.tensors, self.read = tensors, []

    def __getitem__(self, name):
        tensor = self.tensors[name]
        self.read.append(name)
        return tensor

    def __contains__(self, name):
        return name in self.tensors

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)


def converted(state_dict, config=MINI):
    from nllb_prune.on_fairseq2.conversion import convert_nllb_moe_state_dict

    return convert_nllb_moe_state_dict(state_dict, config)


def assert_equal(ours, wanted):
    assert set(ours) == set(wanted)
    for name in wanted:
        assert ours[name].dtype == wanted[name].dtype, name
        assert torch.equal(ours[name], wanted[name]), name


@pytest.fixture(scope="module")
def wanted():
    return dict(converted(TENSORS))


@pytest.fixture(scope="module")
def wanted_dense():
    return dict(converted(DENSE_TENSORS, MINI_DENSE))


def fairseq_dense():
    """`mini-dense` as fairseq has it."""
    table = {name.removeprefix("model."): each for name, each in DENSE_TENSORS.items() if name not in EMBEDDINGS}
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    extra = {"encoder.version": torch.tensor([3.0]), "decoder.embed_positions._float_tensor": torch.zeros(1)}
    return table | extra | {name: DENSE_TENSORS["model.shared.weight"].clone() for name in names}


def test_the_dense_model_is_what_fairseq2_itself_makes_of_it(wanted_dense):
    """fairseq2 has a converter of its own for dense models of fairseq."""
    from fairseq2.models.nllb import NllbConfig, convert_nllb_state_dict

    own = convert_nllb_state_dict(fairseq_dense(), NllbConfig())
    for name in ("decoder_frontend.embed.weight", "final_proj.weight"):  # the same tensor, which ours has once
        assert torch.equal(own.pop(name), wanted_dense["encoder_frontend.embed.weight"])
    assert_equal(wanted_dense, own)


def test_the_values_are_those_of_the_files(wanted):
    for part, name in (("fc1_weight", "fc1.weight"), ("fc2_bias", "fc2.bias")):
        stacked = wanted[f"decoder.layers.1.ffn.sparse.bank.{part}"]
        for expert in range(64):
            assert torch.equal(stacked[expert], TENSORS[f"model.decoder.layers.1.ffn.experts.expert_{expert}.{name}"])
    assert torch.equal(
        wanted["encoder.layers.5.ffn.sparse.router_weight"],
        TENSORS["model.encoder.layers.5.ffn.router.classifier.weight"],
    )
    assert torch.equal(
        wanted["decoder.layers.2.encoder_decoder_attn.output_proj.bias"],
        TENSORS["model.decoder.layers.2.cross_attention.out_proj.bias"],
    )
    assert torch.equal(
        wanted["encoder.layers.0.ffn.inner_proj.weight"], TENSORS["model.encoder.layers.0.ffn.fc1.weight"]
    )
    embedding = wanted["encoder_frontend.embed.weight"]
    assert torch.equal(embedding[:4], TENSORS["model.shared.weight"][[1, 3, 0, 2]])
    assert torch.equal(embedding[4:], TENSORS["model.shared.weight"][4:])


def without_prefix(tensors):
    return {name.removeprefix("model."): each for name, each in tensors.items()}


ALIKE = {
    "transformers": (lambda: TENSORS, MINI),
    "without prefix": (lambda: without_prefix(TENSORS), MINI),
    "without prefix, with the head": (
        lambda: without_prefix(TENSORS) | {"lm_head.weight": TENSORS["model.shared.weight"]},
        MINI,
    ),
    "under one key": (lambda: {"model": TENSORS, "step": 3}, MINI),
    "fairseq": (lambda: original.shared_tensors(range(64)), MINI),
    "fairseq under one key": (lambda: {"model": original.shared_tensors(range(64)), "args": None}, MINI),
    "dense transformers": (lambda: DENSE_TENSORS, MINI_DENSE),
    "dense without prefix": (lambda: without_prefix(DENSE_TENSORS), MINI_DENSE),
    "dense without prefix, with the head": (
        lambda: without_prefix(DENSE_TENSORS) | {"lm_head.weight": DENSE_TENSORS["model.shared.weight"]},
        MINI_DENSE,
    ),
    "dense fairseq": (fairseq_dense, MINI_DENSE),
    "dense fairseq under one key": (lambda: {"model": fairseq_dense()}, MINI_DENSE),
}


@pytest.mark.parametrize(("make", "config"), ALIKE.values(), ids=ALIKE)
def test_every_layout_of_a_model_is_one_in_fairseq2(make, config, wanted, wanted_dense):
    assert_equal(converted(make(), config), wanted if config is MINI else wanted_dense)


@pytest.mark.parametrize("name", ["mini", "mini-dense"])
def test_fairseq2s_own_layout_stays_as_it_is(name, wanted, wanted_dense):
    state_dict, config = {"mini": (wanted, MINI), "mini-dense": (wanted_dense, MINI_DENSE)}[name]
    assert converted(state_dict, config) is state_dict
    assert converted({"model": state_dict}, config) is state_dict


def test_a_model_takes_it(wanted):
    from nllb_prune.on_fairseq2.factory import create_nllb_moe_model

    with torch.device("meta"):
        model = create_nllb_moe_model(MINI)
    missing = model.load_state_dict(dict(wanted), strict=False, assign=True)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) == {"decoder_frontend.embed.weight", "final_proj.weight"}  # that of the encoder


def test_experts_that_are_not_kept_are_left_where_they_are():
    kept = dataclasses.replace(
        MINI, encoder_experts=[[3, 60], [0, 1, 2], [5, 6]], decoder_experts=[[1, 2], [0, 63], [9, 10, 11, 12]]
    )
    counted = Counted(TENSORS)
    weight = converted(counted, kept)["encoder.layers.1.ffn.sparse.bank.fc1_weight"]
    assert weight.shape == (2, 128, 160)
    assert torch.equal(weight[1], TENSORS[SPARSE_NAME.format(60)])
    assert set(counted.read) == {SPARSE_NAME.format(3), SPARSE_NAME.format(60)}


def test_a_tensor_is_made_when_it_is_asked_for():
    counted = Counted(TENSORS)
    ours = converted(counted)
    assert len(ours) == len(set(ours)) > 100
    assert "encoder.layers.1.ffn.sparse.bank.fc1_weight" in ours
    assert counted.read == []
    _ = ours["decoder.layer_norm.weight"]
    assert counted.read == ["model.decoder.layer_norm.weight"]
    _ = ours["encoder.layers.1.ffn.sparse.bank.fc1_weight"]
    assert set(counted.read[1:]) == {SPARSE_NAME.format(expert) for expert in range(64)}


def test_so_is_one_on_the_way_back(wanted):
    from nllb_prune.on_fairseq2.conversion import to_transformers

    counted = Counted(wanted)
    theirs = to_transformers(counted, MINI)
    assert counted.read == []
    assert torch.equal(theirs[SPARSE_NAME.format(7)], TENSORS[SPARSE_NAME.format(7)])
    assert counted.read == ["encoder.layers.1.ffn.sparse.bank.fc1_weight"]


WRONG = {
    "missing": (
        lambda: {n: t for n, t in TENSORS.items() if n != "model.encoder.layer_norm.bias"},
        MINI,
        r"must hold `model\.encoder\.layer_norm\.bias`, but does not; it is incomplete or of another model\.",
    ),
    "one too many": (
        lambda: TENSORS | {"model.encoder.layers.6.self_attn.q_proj.weight": torch.zeros(1)},
        MINI,
        r"holds 1 others, first `model\.encoder\.layers\.6\.self_attn\.q_proj\.weight`\.",
    ),
    "an expert missing": (
        lambda: {n: t for n, t in TENSORS.items() if n != SPARSE_NAME.format(63)},
        MINI,
        r"must hold `model\.encoder\.layers\.1\.ffn\.experts\.expert_63\.fc1\.weight`, but does not",
    ),
    "more experts": (
        lambda: TENSORS,
        dataclasses.replace(MINI, num_experts=60),
        r"holds 96 others, first `model\.decoder\.layers\.0\.ffn\.experts\.expert_60\.fc1\.bias`\.",
    ),
    "fewer experts": (
        lambda: TENSORS,
        dataclasses.replace(MINI, num_experts=65),
        r"must hold `model\.encoder\.layers\.1\.ffn\.experts\.expert_64\.fc1\.weight`, but does not",
    ),
    "sparse as dense": (lambda: TENSORS, MINI_DENSE, r"must hold `model\.encoder\.layers\.1\.ffn\.fc1\.weight`, but"),
    "dense as sparse": (
        lambda: DENSE_TENSORS,
        MINI,
        "must hold sparse layers, .* names of m2m_100, a dense one",
    ),
    "floats as int8": (
        lambda: TENSORS,
        dataclasses.replace(MINI, expert_bits=8),
        r"must hold `model\.encoder\.layers\.1\.ffn\.experts\.expert_0\.fc1\.weight_scale`, but does not",
    ),
    "fairseq, an expert missing": (
        lambda: original.shared_tensors(range(63)),
        MINI,
        r"must hold `model\.encoder\.layers\.1\.ffn\.experts\.expert_63\.fc1\.weight`, but does not",
    ),
}


@pytest.mark.parametrize(("make", "config", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_a_line(make, config, message):
    with pytest.raises(UsageError, match=message) as error:
        converted(make(), config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("expert", [0, 5, 63])
def test_an_expert_of_another_shape(expert):
    name = SPARSE_NAME.format(expert)
    ours = converted(TENSORS | {name: TENSORS[name][:1]})
    with pytest.raises(
        UsageError, match=r"must have one shape, but have .*\(1, 160\).*; the checkpoint is dam"
    ) as error:
        _ = ours["encoder.layers.1.ffn.sparse.bank.fc1_weight"]
    assert "\n" not in str(error.value)


def kept_experts():
    """Of each of some layers, two or more of eight."""
    layer = st.lists(st.integers(0, 7), min_size=2, max_size=8, unique=True).map(sorted)
    return st.one_of(st.none(), st.tuples(layer, layer)), st.one_of(st.none(), st.tuples(layer))


@settings(max_examples=25)
@given(
    encoder=kept_experts()[0],
    decoder=kept_experts()[1],
    stored=st.sampled_from([None, (8, None), (4, None), (4, 16)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
)
def test_there_and_back_is_the_same(encoder, decoder, stored, dtype, bias):
    from nllb_prune.on_fairseq2.conversion import to_fairseq2, to_transformers
    from nllb_prune.on_fairseq2.factory import create_nllb_moe_model

    bits, group = stored or (None, None)
    config = dataclasses.replace(
        SPARSE,
        encoder_experts=None if encoder is None else [list(ids) for ids in encoder],
        decoder_experts=None if decoder is None else [list(ids) for ids in decoder],
        expert_bits=bits,
        expert_group=group,
        router_bias=bias,
    )
    model = create_nllb_moe_model(config)
    ours = {}
    for name, each in model.named_parameters():
        if each.is_floating_point():
            ours[name] = torch.randn(each.shape).to(dtype)
        else:
            ours[name] = torch.randint(-100, 100, each.shape).to(each.dtype)
    theirs = dict(to_transformers(ours, config))
    experts = [name for name in theirs if re.search(r"layers\.0\.ffn\.experts\.expert_\d+\.fc1\.bias$", name)]
    assert len(experts) == (8 if encoder is None else len(encoder[0]))
    assert_equal(to_fairseq2(theirs, config, FAMILIES["nllb-moe"]), ours)
    assert_equal(converted(theirs, config), ours)
    assert_equal(to_transformers(converted(theirs, config), config), theirs)


def test_mini_there_and_back_is_its_files(wanted, wanted_dense):
    from nllb_prune.on_fairseq2.conversion import to_transformers

    assert_equal(to_transformers(wanted, MINI), {n: t for n, t in TENSORS.items() if n not in EMBEDDINGS[1:]})
    assert_equal(
        to_transformers(wanted_dense, MINI_DENSE), {n: t for n, t in DENSE_TENSORS.items() if n not in EMBEDDINGS[1:]}
    )


def test_a_dense_model_may_get_the_names_of_either_class():
    from nllb_prune.on_fairseq2.conversion import to_transformers

    ours = dict(filled(DENSE).named_parameters())
    for family in FAMILIES.values():
        theirs = to_transformers(ours, DENSE, family)
        assert f"model.encoder.layers.0.{family.layer_names.ffn_norm}.weight" in theirs
        assert_equal(converted(theirs, DENSE), ours)


def test_a_model_that_lacks_a_tensor_is_no_model(wanted):
    from nllb_prune.on_fairseq2.conversion import to_transformers

    fewer = {name: each for name, each in wanted.items() if name != "encoder.layer_norm.weight"}
    with pytest.raises(KeyError, match=r"encoder\.layer_norm\.weight"):
        dict(to_transformers(fewer, MINI))


def test_quantised_experts_are_stacked_as_they_are_stored():
    weight = torch.randn(48, 32)
    scheme = Scheme(name="int4", bits=4, group=16)
    parts = quantised(weight, scheme)
    config = NllbMoeConfig(
        **dataclasses.asdict(dataclasses.replace(SPARSE, expert_bits=4, expert_group=16, decoder_experts=[[2, 3]]))
    )
    from nllb_prune.on_fairseq2.conversion import to_fairseq2, to_transformers

    ours = dict(filled_quantised(config).named_parameters())
    theirs = dict(to_transformers(ours, config))
    path = "model.encoder.layers.0.ffn.experts.expert_3.fc1.weight"
    for suffix, each in parts.items():
        assert theirs[path + suffix].shape == each.shape
        theirs[path + suffix] = each.to(theirs[path + suffix].dtype)
    bank = filled_quantised(config).encoder.layers[0].ffn.sparse.bank
    again = to_fairseq2(theirs, config, FAMILIES["nllb-moe"])
    with torch.no_grad():
        for name, parameter in bank.named_parameters():
            parameter.copy_(again[f"encoder.layers.0.ffn.sparse.bank.{name}"])
    error = (bank.matrices("fc1_weight", [1])[0] - weight).abs().max()  # 3 is in the second slot
    assert error <= 0.6 * weight.abs().max() / 7


def filled_quantised(config):
    from nllb_prune.on_fairseq2.factory import create_nllb_moe_model

    model = create_nllb_moe_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model
