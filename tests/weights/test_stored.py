"""Bytes of a tensor in a file: what they are, and what is said where the file ends before."""

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.weights.stored import StoredTensor


def stored(path, offset=3, dtype=torch.int16, shape=(2, 3)):
    return StoredTensor(name="model.a", path=path, offset=offset, dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("dtype", "shape", "nbytes"),
    [
        (torch.float32, (2, 3), 24),
        (torch.bfloat16, (2, 3), 12),
        (torch.float8_e4m3fn, (5,), 5),
        (torch.complex64, (2,), 16),
        (torch.int64, (), 8),
        (torch.float32, (0, 7), 0),
    ],
)
def test_length(tmp_path, dtype, shape, nbytes):
    tensor = stored(tmp_path / "none", dtype=dtype, shape=shape)
    assert tensor.nbytes == nbytes
    (tmp_path / "none").write_bytes(bytes(3 + nbytes))
    assert (tensor.read().dtype, tuple(tensor.read().shape)) == (dtype, shape)
    assert not tensor.read().float().any() if dtype != torch.complex64 else True


def test_values_are_little_endian_from_the_offset_on(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" + b"".join(n.to_bytes(2, "little") for n in range(1, 8)))
    assert stored(tmp_path / "file").read().tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_is_read_is_a_copy(tmp_path):
    (tmp_path / "file").write_bytes(bytes(15))
    stored(tmp_path / "file").read().fill_(7)
    assert (tmp_path / "file").read_bytes() == bytes(15)


@pytest.mark.parametrize("length", [0, 3, 10, 14])
def test_a_file_that_ends_before(tmp_path, length):
    (tmp_path / "file").write_bytes(bytes(length))
    with pytest.raises(UsageError, match=rf"must hold `model.a` up to byte 15, but ends at byte {max(length, 3)}"):
        stored(tmp_path / "file").read()
