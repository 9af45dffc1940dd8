"""Positions: the table is fairseq's and transformers' to the bit, and rows are taken from it as in fairseq2."""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.fairseq2

WIDTH, LONGEST = 160, 40


@pytest.fixture(scope="module")
def positions():
    from nllb_prune.on_fairseq2.positions import FairseqPositionEncoder

    return FairseqPositionEncoder(WIDTH, LONGEST).eval()


@pytest.fixture(scope="module")
def their():
    from fairseq2.nn import SinusoidalPositionEncoder

    return SinusoidalPositionEncoder(WIDTH, LONGEST, _legacy_pad_idx=1).eval()


def layouts():
    from fairseq2.nn import BatchLayout

    return {
        "full": BatchLayout((3, 11), None),
        "padded": BatchLayout((3, 11), [11, 7, 1]),
        "packed": BatchLayout((11,), [4, 2, 5], packed=True),
        "packed and padded": BatchLayout((11,), [4, 2], packed=True),
    }


def test_the_table_is_that_of_transformers(positions):
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSinusoidalPositionalEmbedding

    table = NllbMoeSinusoidalPositionalEmbedding.get_embedding(LONGEST + 2, WIDTH, 1)
    assert torch.equal(positions.table[1:], table[2:])
    assert not positions.table[0].any()


def test_fairseq2s_own_table_is_rounded_otherwise(positions, their):
    torch.testing.assert_close(positions.table, their.freqs, rtol=0, atol=1e-5)
    assert not torch.equal(positions.table, their.freqs)  # once it is, fairseq2's own can be used


@pytest.mark.parametrize("name", ["full", "padded", "packed", "packed and padded"])
def test_rows_are_those_of_fairseq2(name, positions, their):
    layout = layouts()[name]
    states = torch.randn(*layout.position_indices.shape, WIDTH)
    torch.testing.assert_close(positions(states, layout), their(states, layout), rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [0, 1, 9])
def test_a_step_of_decoding(step, positions, their):
    from fairseq2.nn import BatchLayout, IncrementalStateBag

    layout, bag, states = BatchLayout((3, 1), None), IncrementalStateBag(LONGEST), torch.randn(3, 1, WIDTH)
    bag.increment_step_nr(step)
    found = positions(states, layout, state_bag=bag)
    assert torch.equal(found, states + positions.table[1 + step])
    torch.testing.assert_close(found, their(states, layout, state_bag=bag), rtol=0, atol=1e-5)


def test_training_takes_no_steps(positions):
    from fairseq2.nn import BatchLayout, IncrementalStateBag

    bag, states = IncrementalStateBag(LONGEST), torch.zeros(1, 2, WIDTH)
    bag.increment_step_nr(3)
    positions.train()
    try:
        found = positions(states, BatchLayout((1, 2), None), state_bag=bag)
    finally:
        positions.eval()
    assert torch.equal(found[0], positions.table[1:3])


def test_in_bfloat16_the_table_is_rounded_too(positions):
    states = torch.randn(3, 11, WIDTH, dtype=torch.bfloat16)
    found = positions(states, layouts()["padded"])
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[0], states[0] + positions.table[1:12].bfloat16())
    assert positions.table.dtype == torch.float32


def test_too_long(positions):
    from fairseq2.nn import BatchLayout

    with pytest.raises(ValueError, match="`seqs` must have 40 positions at most, but have 41"):
        positions(torch.zeros(1, 41, WIDTH), BatchLayout((1, 41), None))


def test_a_model_made_without_memory_gets_its_table(positions):
    from fairseq2.nn.utils.module import reset_non_persistent_buffers, to_device

    from nllb_prune.on_fairseq2.positions import FairseqPositionEncoder

    made = []
    for _ in range(2):
        with torch.device("meta"):
            made.append(nn.ModuleList([FairseqPositionEncoder(WIDTH, LONGEST)]))
    assert made[0][0].table.is_meta
    made[0].to_empty(device="cpu")
    reset_non_persistent_buffers(made[0])
    to_device(made[1], torch.device("cpu"))
    for each in made:
        assert torch.equal(each[0].table, positions.table)
        assert not each.state_dict()


@pytest.mark.parametrize("width", [2, 5])
def test_a_width_that_has_no_table(width):
    from nllb_prune.on_fairseq2.positions import FairseqPositionEncoder

    with pytest.raises(ValueError, match=f"`encoding_dim` must be even and 4 or more, but is {width} instead"):
        FairseqPositionEncoder(width, LONGEST)


def test_what_it_is_called(positions):
    assert repr(positions) == f"FairseqPositionEncoder(encoding_dim={WIDTH}, max_seq_len={LONGEST})"
