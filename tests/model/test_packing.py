import torch
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.model.packing import pack, unpack, words


def test_the_first_number_is_in_the_lowest_bits():
    numbers = torch.tensor([[-8, -7, -6, -5, -4, -3, -2, -1], [7, 0, 0, 0, 0, 0, 0, -8]], dtype=torch.int8)
    assert [f"{word & 0xFFFFFFFF:08x}" for word in pack(numbers).flatten().tolist()] == ["76543210", "0888888f"]


def test_a_row_is_filled_up_with_zero_bits():
    assert pack(torch.full((1, 9), 7, dtype=torch.int8)).tolist() == [[-1, 0xF]]


@given(rows=st.integers(1, 4), columns=st.integers(1, 40), stack=st.integers(1, 3), seed=st.integers(0, 99))
def test_packed_numbers_come_back(rows, columns, stack, seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-8, 8, (stack, rows, columns), dtype=torch.int8, generator=generator)
    packed = pack(numbers)
    assert packed.shape == (stack, rows, words(columns))
    assert torch.equal(unpack(packed, columns), numbers)
    assert torch.equal(unpack(packed[:, 1:], columns), numbers[:, 1:])  # some rows of it
