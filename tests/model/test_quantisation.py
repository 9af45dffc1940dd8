"""What `quantised.safetensors` holds was made with compressed-tensors 0.20.0:

pip install compressed-tensors==0.20.0 && python tests/reference/make_quantised.py
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from nllb_prune.errors import UsageError
from nllb_prune.model.quantisation import SCHEMES, Scheme, dequantised, quantised

REFERENCE = Path(__file__).parent.parent / "reference" / "quantised.safetensors"
GROUPS = [None, 1, 7, 32, 64]
EACH = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@pytest.fixture(scope="module")
def reference():
    return load_file(REFERENCE)


def frozen(reference, scheme):
    return {
        name.removeprefix(f"{scheme.name}/weight"): tensor
        for name, tensor in reference.items()
        if name.startswith(f"{scheme.name}/weight")
    }


@EACH
def test_we_store_what_the_library_stores(reference, scheme):
    made, expected = quantised(reference["weight"], scheme), frozen(reference, scheme)
    assert made.keys() == expected.keys()
    for suffix, tensor in expected.items():
        assert made[suffix].dtype == tensor.dtype
        assert torch.equal(made[suffix], tensor), suffix


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_read_what_the_library_reads(reference, scheme, dtype):
    name = str(dtype).removeprefix("torch.")
    found = dequantised(frozen(reference, scheme), scheme, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, reference[f"{scheme.name}/{name}"])


@EACH
def test_scales_are_the_librarys_rounded_up_to_bfloat16(reference, scheme):
    ours, theirs = quantised(reference["weight"], scheme)["_scale"].float(), reference[f"{scheme.name}/own_scale"]
    zero = reference["weight"].view(len(ours), ours.shape[1], -1).eq(0).all(-1)
    assert zero.sum() == ours.shape[1]  # where the library has a scale of its choice
    change = (ours / theirs)[~zero] - 1
    assert 0 <= change.min() <= change.max() < 2**-7
    assert change.max() > 0


@EACH
def test_the_library_understands_our_description(scheme):
    with safe_open(REFERENCE, framework="pt") as file:
        read = json.loads(file.metadata()[scheme.name])
    ours = scheme.to_json()["weights"]
    assert {name: read[name] for name in ours} == ours
    assert read["group_size"] == scheme.group


def draw(rows, columns, magnitude, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return weight * 10.0**magnitude


shapes = st.tuples(st.integers(1, 5), st.integers(1, 150))
drawn = st.builds(lambda s, m, seed: draw(*s, m, seed), shapes, st.integers(-44, 37), st.integers(0, 99))


@given(weight=drawn, bits=st.sampled_from([4, 8]), group=st.sampled_from(GROUPS))
def test_no_weight_is_off_by_more_than_half_a_scale(weight, bits, group):
    scheme = Scheme(name="any", bits=bits, group=group)
    parts = quantised(weight, scheme)
    found = dequantised(parts, scheme, torch.float32)
    columns = torch.arange(weight.shape[1]) // (group or weight.shape[1])
    scale = parts["_scale"].double()[:, columns]
    assert ((found.double() - weight.double()).abs() <= scale * (0.5 + 1e-4)).all()
    largest = torch.stack([weight[:, columns == n].abs().amax(1) for n in range(scheme.groups(weight.shape[1]))], 1)
    least = torch.finfo(torch.bfloat16).tiny
    assert (
        parts["_scale"].double() <= (largest.double() / (2 ** (bits - 1) - 0.5) * (1 + 2**-7)).clamp_min(least)
    ).all()


@given(weight=drawn, bits=st.sampled_from([4, 8]), group=st.sampled_from(GROUPS))
def test_signs_are_kept(weight, bits, group):
    scheme = Scheme(name="any", bits=bits, group=group)
    found = dequantised(quantised(weight, scheme), scheme, torch.float32)
    assert (found * weight.sign() >= 0).all()
    mirrored = dequantised(quantised(-weight, scheme), scheme, torch.float32)
    assert torch.equal(mirrored.sign(), -found.sign())


@EACH
@pytest.mark.parametrize("columns", [1, 64, 100])
def test_zeros_stay_zeros(scheme, columns):
    weight = torch.zeros(3, columns)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(dequantised(quantised(weight, scheme), scheme, dtype), weight.to(dtype))


@EACH
def test_groups_do_not_touch_each_other(scheme):
    weight = draw(4, 100, -2, 3)
    before = dequantised(quantised(weight, scheme), scheme, torch.float32)
    weight[2, 70] = 100.0  # in the second, shorter group of int4
    changed = dequantised(quantised(weight, scheme), scheme, torch.float32).ne(before)
    untouched = torch.ones_like(changed)
    untouched[2, 64 if scheme.group else 0 :] = False
    assert not changed[untouched].any()
    assert changed[2, 70]


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantised_as_its_float32_is(scheme, dtype):
    weight = draw(6, 100, -2, 1).to(dtype)
    ours, expected = quantised(weight, scheme), quantised(weight.float(), scheme)
    assert all(torch.equal(ours[suffix], tensor) for suffix, tensor in expected.items())
    found = dequantised(ours, scheme, dtype)
    assert found.dtype == dtype
    steps = (found.double() - dequantised(ours, scheme, torch.float64)).abs()
    # bfloat16 rounds the product once; float16 holds these scales exactly
    assert (steps <= torch.finfo(dtype).eps / 2 * found.double().abs() + 2**-25).all()


def test_float16_holds_scales_as_small_as_said():
    tail = torch.arange(128, 256).to(torch.bfloat16) * 2**-24  # all eight bits of scales from 7.6e-6 on
    assert torch.equal(tail.to(torch.float16).double(), tail.double())
    parts = quantised(draw(64, 100, -5, 2), SCHEMES["int8"])
    assert float(parts["_scale"].max()) < 8e-6
    wanted = dequantised(parts, SCHEMES["int8"], torch.float64)
    assert (dequantised(parts, SCHEMES["int8"], torch.float16).double() - wanted).abs().max() <= 4e-6


@EACH
def test_the_weight_is_left_alone(scheme):
    weight = draw(3, 70, 0, 0)
    before = weight.clone()
    quantised(weight, scheme)
    assert torch.equal(weight, before)
    transposed = draw(70, 3, 0, 0).T
    same = quantised(transposed.contiguous(), scheme)
    assert all(torch.equal(part, same[suffix]) for suffix, part in quantised(transposed, scheme).items())


@EACH
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3.3e38])
def test_what_is_no_finite_number_is_refused(scheme, value):
    weight = torch.zeros(3, 100)
    weight[1, 98] = value
    with pytest.raises(UsageError, match=r"`fc1` must hold finite numbers up to 3e\+38"):
        quantised(weight, scheme, name="fc1")


@EACH
def test_the_largest_numbers_stay_finite(scheme):
    weight = torch.full((2, 70), -3e38)
    assert dequantised(quantised(weight, scheme), scheme, torch.float32).isfinite().all()


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(2, 0), torch.zeros(2, 2, dtype=torch.int8)])
def test_what_is_no_matrix_of_floats_is_refused(weight):
    with pytest.raises(UsageError, match="`weight` must be a matrix of floats"):
        quantised(weight, SCHEMES["int8"])


def _without(suffix):
    return lambda parts: {name: tensor for name, tensor in parts.items() if name != suffix}


@pytest.mark.parametrize(
    ("scheme", "damage"),
    [
        ("int4", _without("_scale")),
        ("int4", _without("_packed")),
        ("int4", _without("_shape")),
        ("int8", _without("_scale")),
        ("int8", _without("")),
        ("int4", lambda parts: parts | {"_scale": parts["_scale"][:, :1]}),
        ("int4", lambda parts: parts | {"_shape": torch.tensor([3, 164])}),
        ("int4", lambda parts: parts | {"_shape": torch.tensor([3])}),
        ("int4", lambda parts: parts | {"_packed": parts["_packed"].long()}),
        ("int4", lambda parts: quantised(torch.ones(3, 100), SCHEMES["int8"])),
        ("int8", lambda parts: parts | {"": parts[""].float()}),
        ("int8", lambda parts: parts | {"_scale": parts["_scale"].squeeze(1)}),
        ("int8", lambda parts: parts | {"_zero_point": parts["_scale"]}),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(scheme, damage):
    parts = quantised(torch.ones(3, 100), SCHEMES[scheme])
    with pytest.raises(UsageError, match=r"matrix must be|must have two dimensions"):
        dequantised(damage(parts), SCHEMES[scheme], torch.float32)


def test_scales_of_other_dtypes_are_read():
    parts = quantised(draw(3, 100, -2, 0), SCHEMES["int4"])
    single = parts | {"_scale": parts["_scale"].float()}
    found = dequantised(single, SCHEMES["int4"], torch.float32)
    assert torch.equal(found, dequantised(parts, SCHEMES["int4"], torch.float32))
