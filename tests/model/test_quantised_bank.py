import copy
import io
from pathlib import Path

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.model import quantised_bank
from nllb_prune.model.expert_bank import PARAMETERS, ExpertBank
from nllb_prune.model.loading import load_model
from nllb_prune.model.quantisation import SCHEMES, dequantised, quantised
from nllb_prune.model.quantised_bank import QuantisedExpertBank
from nllb_prune.model.routing import routing
from nllb_prune.model.scheme import Scheme, stored_tensors
from nllb_prune.model.sparse_ffn import SparseFfn

TINY = Path(__file__).parent.parent / "reference" / "tiny"
EACH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
EXPERTS, D_MODEL, FFN = 8, 80, 100  # neither is a multiple of int4's groups
SOURCE = torch.tensor([[94, 7, 9, 30, 11, 2], [94, 8, 20, 2, 1, 1]])
TARGET = torch.tensor([[2, 95, 14, 6], [2, 95, 40, 1]])


def float_bank(expert_ids=range(EXPERTS), dtype=torch.float32, seed=0):
    bank = ExpertBank(expert_ids=expert_ids, experts=EXPERTS, d_model=D_MODEL, ffn=FFN, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name in PARAMETERS:
        place = getattr(bank, name)
        place.copy_(torch.randn(place.shape, generator=generator) / 10)
    return bank


def through(bank, scheme):
    """A bank of floats with the weights that a quantised one of the scheme has."""
    made = copy.deepcopy(bank)
    for name in ("fc1_weight", "fc2_weight"):
        for matrix in getattr(made, name):
            matrix.copy_(dequantised(quantised(matrix, scheme), scheme, matrix.dtype))
    return made


def inputs(tokens, among=range(EXPERTS), dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor(list(among))
    chosen = torch.stack([ids[torch.randperm(len(ids), generator=generator)[:2]] for _ in range(tokens)])
    return (
        torch.randn(tokens, D_MODEL, generator=generator).to(dtype),
        chosen.view(tokens, 2),
        torch.rand(tokens, 2, generator=generator).to(dtype),
    )


def relative(ours, expected):
    return float((ours.double() - expected.double()).abs().max() / expected.double().abs().max())


@EACH
@pytest.mark.parametrize("block", [1, 3 * D_MODEL + 1, D_MODEL * FFN - 1, 3 * D_MODEL * FFN, 1 << 20])
@pytest.mark.parametrize("tokens", [1, 5, 200])
def test_it_computes_what_a_bank_of_its_weights_computes(scheme, block, tokens, monkeypatch):
    monkeypatch.setitem(quantised_bank._BLOCK, "cpu", block)
    bank = float_bank()
    ours = QuantisedExpertBank.of(bank, scheme)(*inputs(tokens), scale=0.8)
    assert relative(ours, through(bank, scheme)(*inputs(tokens), scale=0.8)) <= 1e-6
    assert relative(ours, bank(*inputs(tokens), scale=0.8)) > 1e-4  # not those of the bank it was made of


@EACH
def test_large_matrices_go_by_blocks_of_rows(scheme):
    torch.manual_seed(3)
    bank = ExpertBank(expert_ids=range(2), experts=2, d_model=1024, ffn=1088, dtype=torch.float32)
    for name in PARAMETERS:
        torch.nn.init.normal_(getattr(bank, name), std=0.02)
    assert bank.fc1_weight[0].numel() > quantised_bank._BLOCK["cpu"]
    tokens, chosen, gates = torch.randn(3, 1024), torch.tensor([[0, 1], [1, 0], [0, 1]]), torch.rand(3, 2)
    ours = QuantisedExpertBank.of(bank, scheme)(tokens, chosen, gates, scale=1.0)
    assert relative(ours, through(bank, scheme)(tokens, chosen, gates, scale=1.0)) <= 1e-6


@EACH
@pytest.mark.parametrize("block", [FFN * 20, 1 << 20])
def test_bfloat16(scheme, block, monkeypatch):
    monkeypatch.setitem(quantised_bank._BLOCK, "cpu", block)
    bank = float_bank(dtype=torch.bfloat16)
    made, case = QuantisedExpertBank.of(bank, scheme), inputs(50, dtype=torch.bfloat16)
    ours = made(*case, scale=0.8)
    assert ours.dtype == torch.bfloat16
    assert relative(ours, through(bank, scheme)(*case, scale=0.8)) <= 2e-2


@EACH
def test_no_token_at_all(scheme):
    bank = QuantisedExpertBank.of(float_bank(), scheme)
    nothing = bank(torch.empty(0, D_MODEL), torch.empty(0, 2, dtype=torch.int64), torch.empty(0, 2), scale=1.0)
    assert nothing.shape == (0, D_MODEL)


@EACH
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_part_of_the_experts(scheme, block, monkeypatch):
    monkeypatch.setitem(quantised_bank._BLOCK, "cpu", block)
    kept = (1, 4, 6)
    whole, few = float_bank(), float_bank(kept)
    for name in PARAMETERS:
        getattr(few, name).copy_(getattr(whole, name)[list(kept)])
    made = QuantisedExpertBank.of(few, scheme)
    assert (made.expert_ids, made.experts, made.complete) == (kept, EXPERTS, False)
    assert made.resident.nonzero().flatten().tolist() == list(kept)
    assert torch.equal(made.slot_of, few.slot_of)
    case = inputs(40, among=kept)
    assert relative(made(*case, scale=1.0), through(whole, scheme)(*case, scale=1.0)) <= 1e-6


@EACH
def test_a_tap_sees_and_changes_outputs(scheme):
    bank, case, seen = float_bank(), inputs(9), {}

    def tap(name):
        def look(values, order):
            seen[name] = values.clone(), order
            return values * 3

        return look

    ours = QuantisedExpertBank.of(bank, scheme)(*case, scale=0.5, tap=tap("ours"))
    expected = through(bank, scheme)(*case, scale=0.5, tap=tap("expected"))
    assert torch.equal(seen["ours"][1], seen["expected"][1])
    assert relative(seen["ours"][0], seen["expected"][0]) <= 1e-6
    assert relative(ours, expected) <= 1e-6


@EACH
def test_places_are_filled_from_a_checkpoint_by_name(scheme):
    bank, name = float_bank((2, 5)), "ffn.experts.expert_5.fc1.weight"
    stored = {name + suffix: part for suffix, part in quantised(bank.fc1_weight[1], scheme).items()}
    made = QuantisedExpertBank(expert_ids=(2, 5), experts=EXPERTS, d_model=D_MODEL, ffn=FFN, scheme=scheme)
    assert {name + suffix for suffix in made.places("fc1_weight")} == set(stored)
    for suffix, parameter in made.places("fc1_weight").items():
        place = getattr(made, parameter)[1]
        assert (place.shape, place.is_floating_point()) == (
            stored[name + suffix].shape,
            stored[name + suffix].is_floating_point(),
        )
        place.copy_(stored[name + suffix])
    expected = dequantised(quantised(bank.fc1_weight[1], scheme), scheme, torch.float32)
    assert torch.equal(made.matrices("fc1_weight", [1])[0], expected)
    assert made.places("fc2_bias") == {"": "fc2_bias"}


def test_a_bank_of_floats_has_one_place_for_each_parameter():
    bank = float_bank()
    assert [bank.places(name) for name in PARAMETERS] == [{"": name} for name in PARAMETERS]


@EACH
def test_parameters_are_the_stored_tensors(scheme):
    with torch.device("meta"):
        bank = QuantisedExpertBank(
            expert_ids=(0, 3, 4), experts=9, d_model=160, ffn=128, scheme=scheme, dtype=torch.float16
        )
    expected = {"fc1_bias": (torch.float16, (3, 128)), "fc2_bias": (torch.float16, (3, 160))}
    for matrix, shape in (("fc1_weight", (128, 160)), ("fc2_weight", (160, 128))):
        for name, (kind, size) in stored_tensors(matrix, shape, scheme).items():
            expected[name] = (torch.float16 if kind.is_floating_point else kind, (3, *size))
    assert {name: (p.dtype, tuple(p.shape)) for name, p in bank.named_parameters()} == expected
    assert list(bank.state_dict()) == [name for name, _ in bank.named_parameters()]


@EACH
@pytest.mark.parametrize(
    "convert",
    [
        lambda bank: bank.to(torch.bfloat16),
        lambda bank: bank.bfloat16(),
        lambda bank: copy.deepcopy(bank).to(dtype=torch.bfloat16).float().bfloat16(),
    ],
)
def test_conversion_leaves_whole_numbers_alone(scheme, convert):
    bank = float_bank()
    made = QuantisedExpertBank.of(bank, scheme)
    before = {name: parameter.clone() for name, parameter in made.named_parameters()}
    converted = convert(made)
    for name, parameter in converted.named_parameters():
        if before[name].is_floating_point():
            assert parameter.dtype == torch.bfloat16
        else:
            assert torch.equal(parameter, before[name])
            assert parameter.dtype == before[name].dtype
    scales = {name: tensor for name, tensor in before.items() if name.endswith("_scale")}
    assert all(torch.equal(getattr(converted, name).float(), tensor) for name, tensor in scales.items())
    expected = through(bank, scheme).to(torch.bfloat16)
    case = inputs(30, dtype=torch.bfloat16)
    assert relative(converted(*case, scale=1.0), expected(*case, scale=1.0)) <= 2e-2


@EACH
def test_float16_of_usual_weights_is_exact_where_scales_are(scheme):
    made = QuantisedExpertBank.of(float_bank(), scheme)
    single = made.matrices("fc1_weight", range(EXPERTS))
    half = copy.deepcopy(made).half().matrices("fc1_weight", range(EXPERTS))
    assert torch.equal(half, single.half())


@EACH
def test_copies_and_state_dicts(scheme):
    made, case = QuantisedExpertBank.of(float_bank(), scheme), inputs(12)
    expected = made(*case, scale=1.0)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = QuantisedExpertBank.of(float_bank(seed=9), scheme)
    assert not torch.equal(other(*case, scale=1.0), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(*case, scale=1.0), expected)
    copied = copy.deepcopy(made)
    for parameter in made.parameters():
        parameter.zero_()
    assert torch.equal(copied(*case, scale=1.0), expected)


@EACH
def test_it_takes_the_memory_that_is_said(scheme):
    made = QuantisedExpertBank(
        expert_ids=range(4), experts=4, d_model=512, ffn=1024, scheme=scheme, dtype=torch.bfloat16
    )
    weights = 4 * 2 * 512 * 1024
    bits = 8 * sum(parameter.nbytes for parameter in made.parameters()) / weights
    assert scheme.bits < bits < scheme.bits + 0.35


@EACH
def test_parameters_are_counted_as_those_of_floats(scheme):
    bank = float_bank((2, 5))
    assert QuantisedExpertBank.of(bank, scheme).expert_parameters == bank.expert_parameters
    assert bank.expert_parameters == 2 * D_MODEL * FFN + D_MODEL + FFN


def test_the_error_names_the_expert():
    bank = float_bank((2, 5))
    bank.fc2_weight[1, 3, 4] = float("nan")
    with pytest.raises(UsageError, match="`fc2_weight of expert 5` must hold finite numbers"):
        QuantisedExpertBank.of(bank, SCHEMES["int8"])


def test_other_activations_and_groups():
    bank = ExpertBank(expert_ids=range(EXPERTS), experts=EXPERTS, d_model=D_MODEL, ffn=FFN, activation="gelu")
    for name, parameter in float_bank().named_parameters():
        getattr(bank, name).copy_(parameter)
    scheme = Scheme(name="small groups", bits=4, group=32)
    ours = QuantisedExpertBank.of(bank, scheme)(*inputs(20), scale=1.0)
    assert relative(ours, through(bank, scheme)(*inputs(20), scale=1.0)) <= 1e-6


def tiny(scheme=None, dequantise=False):
    model = load_model(TINY)
    for module in model.modules():
        if isinstance(module, SparseFfn) and scheme is not None:
            module.bank = through(module.bank, scheme) if dequantise else QuantisedExpertBank.of(module.bank, scheme)
    return model


@EACH
@pytest.mark.parametrize("masked", [False, True])
def test_a_model_with_quantised_banks(scheme, masked):
    ours, expected = tiny(scheme), tiny(scheme, dequantise=True)
    keep = torch.zeros(1, 2, 8, dtype=torch.bool)
    keep[..., [0, 3, 5]] = True
    masks = {"encoder": keep, "decoder": keep} if masked else None
    logits = []
    for model in (ours, expected):
        with torch.inference_mode(), routing(model, masks=masks):
            call = model(input_ids=SOURCE, attention_mask=SOURCE.ne(1).long(), decoder_input_ids=TARGET)
            logits.append(call.logits)
    assert relative(*logits) <= 1e-5
    assert sum(p.nbytes for p in ours.parameters()) < sum(p.nbytes for p in expected.parameters())
