import json

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.quantisation import quantised
from nllb_prune.model.scheme import SCHEMES, Scheme, stored_tensors

ALL = [*SCHEMES.values(), Scheme(name="mine", bits=8, group=32), Scheme(name="whole rows", bits=4)]


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
def test_a_scheme_survives_its_file(scheme):
    assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "must have version 1, but has 2 instead"),
        ({"weights": None}, "must be an object with `weights`"),
        ({"weights": {"num_bits": 3}}, "`bits` must be 4 or 8, but is 3 instead"),
        ({"weights": {"num_bits": 8.0}}, "`bits` must be 4 or 8, but is 8.0 instead"),
        ({"weights": {"num_bits": 4, "group_size": 0}}, "`group` must be a number of columns"),
        ({"weights": {"num_bits": 4, "group_size": "64"}}, "`group` must be a number of columns"),
        ({"weights": {"num_bits": 4, "group_size": 64}}, "must be as"),
        ({"format": "int-quantized"}, "must be as"),
        ({"zero": 1}, "must be as"),
    ],
)
def test_what_no_scheme_here_says_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Scheme.from_json(SCHEMES["int4"].to_json() | change)


@pytest.mark.parametrize("asymmetric", [True, False])
def test_other_ways_to_quantise_are_refused(asymmetric):
    content = SCHEMES["int4"].to_json()
    content["weights"] |= {"symmetric": not asymmetric, "dynamic": not asymmetric}
    with pytest.raises(UsageError, match="must be as"):
        Scheme.from_json(content)


@pytest.mark.parametrize("content", [None, 4, "int4", []])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(UsageError, match="must be an object"):
        Scheme.from_json(content)


@pytest.mark.parametrize("scheme", ALL, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (5, 100), (2, 129)])
def test_stored_tensors_are_those_that_are_stored(scheme, shape):
    said = stored_tensors("layer.weight", shape, scheme)
    made = quantised(torch.randn(shape), scheme)
    assert list(said.items()) == [
        (f"layer.weight{suffix}", (part.dtype, tuple(part.shape))) for suffix, part in made.items()
    ]
    assert all(part.is_contiguous() for part in made.values())


def test_the_size_of_an_expert():
    shape = (8192, 2048)
    bits = {
        name: 8 * sum(kind.itemsize * torch.Size(size).numel() for kind, size in stored_tensors("w", shape, s).values())
        for name, s in SCHEMES.items()
    }
    weights = 8192 * 2048
    assert bits["int8"] / weights == pytest.approx(8.01, abs=0.005)
    assert bits["int4"] / weights == pytest.approx(4.25, abs=0.005)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), ()])
def test_only_a_matrix_is_quantised(shape):
    with pytest.raises(UsageError, match="`bias` must have two dimensions"):
        stored_tensors("bias", shape, SCHEMES["int8"])
