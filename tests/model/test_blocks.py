"""Blocks against tensors frozen from transformers 4.57.6, and against the forward of the transformers classes."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from nllb_prune.model.blocks import (
    DecoderCall,
    KeysValues,
    NoPast,
    blocks_of,
    encode,
    hide,
    keep_by_token,
)
from nllb_prune.model.families import FAMILIES
from nllb_prune.model.loading import load_model

TINY = Path(__file__).parent.parent / "reference" / "tiny"
CASES = ("full", "masked", "mixed")

# as in test_parity.py, where the bounds are explained
FLOAT32 = 1e-5
BFLOAT16_MODEL = 0.04


def relative(ours, theirs):
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def kept(reference, case, stack):
    masks = reference.masks(case)
    return None if masks is None else masks[stack]


class Growing:
    """A past that is simply longer after each step."""

    def __init__(self, layers):
        self.held = [None] * layers

    def extend(self, layer, new):
        before = self.held[layer]
        pairs = new if before is None else (torch.cat(pair, dim=2) for pair in zip(before, new, strict=True))
        self.held[layer] = KeysValues(*pairs)
        return self.held[layer]


def causal(length, like):
    return hide(torch.ones(1, 1, length, length, dtype=torch.bool).triu(1), like)


def decode(blocks, encoded, ids, *, past=None, start=0, valid=None, keep=None):
    """Return the logits of target tokens; with a past they are the positions from `start`."""
    length = ids.shape[1]
    states = blocks.embed_target(ids, torch.arange(start, start + length))
    positions = None if valid is None else valid.flatten().nonzero().squeeze(1)
    call = DecoderCall(
        past=NoPast() if past is None else past,
        visible=causal(length, states) if past is None else None,
        source_visible=encoded.visible,
        positions=positions,
        keep=None if keep is None else keep_by_token(keep, length=length, positions=positions),
    )
    for block in blocks.decoder:
        states = block(states, block.source(encoded.memory), call)
    return blocks.logits(states)


@torch.inference_mode()
def run(reference, case, *, targets_valid=True):
    blocks = blocks_of(reference.model)
    encoded = encode(blocks, reference["inputs/source"], kept(reference, case, "encoder"))
    valid = reference["inputs/target_valid"] if targets_valid else None
    keep = kept(reference, case, "decoder")
    return encoded, decode(blocks, encoded, reference["inputs/target"], valid=valid, keep=keep)


# a sparse model


@pytest.mark.parametrize("case", CASES)
def test_float32(float32, case):
    encoded, logits = run(float32, case)
    source_valid, valid = float32["inputs/source_valid"], float32["inputs/target_valid"]
    assert relative(encoded.memory[source_valid], float32[f"{case}/encoder"][source_valid]) <= FLOAT32
    assert relative(logits[valid], float32[f"{case}/logits"][valid]) <= FLOAT32


@pytest.fixture
def rounded_attention(monkeypatch):
    """Attention that rounds between its steps, as the reference does; the fused one keeps float32 inside."""

    def attention(queries, keys, values, attn_mask=None):
        scores = queries @ keys.transpose(2, 3) * queries.shape[-1] ** -0.5
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ values

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16(bfloat16, case, rounded_attention):
    encoded, logits = run(bfloat16, case)
    source_valid, valid = bfloat16["inputs/source_valid"], bfloat16["inputs/target_valid"]
    assert encoded.memory.dtype == logits.dtype == torch.bfloat16
    assert relative(encoded.memory[source_valid], bfloat16[f"{case}/encoder"][source_valid]) <= BFLOAT16_MODEL
    assert relative(logits[valid], bfloat16[f"{case}/logits"][valid]) <= BFLOAT16_MODEL


def test_bfloat16_is_as_exact_as_the_reference(bfloat16):
    """Fused attention rounds elsewhere, which now and then changes an expert: compare what is usual, not the worst."""
    exact = copy.copy(bfloat16)
    exact.model = load_model(TINY, dtype=torch.bfloat16).float()  # its weights are rounded, its arithmetic is not
    source_valid, valid = bfloat16["inputs/source_valid"], bfloat16["inputs/target_valid"]
    for case in CASES:
        encoded, logits = run(bfloat16, case)
        true, true_logits = run(exact, case)
        for ours, name, truth, here in (
            (encoded.memory, "encoder", true.memory, source_valid),
            (logits, "logits", true_logits, valid),
        ):
            error, theirs = ((each - truth)[here].abs().median() for each in (ours, bfloat16[f"{case}/{name}"]))
            assert error <= 1.2 * theirs, (case, name)


@pytest.mark.parametrize("case", CASES)
def test_what_comes_after_a_target_is_not_seen(float32, case):
    """So padding on the right may run as tokens."""
    _, logits = run(float32, case, targets_valid=False)
    valid = float32["inputs/target_valid"]
    assert relative(logits[valid], float32[f"{case}/logits"][valid]) <= FLOAT32


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_one_position_a_call(float32, case):
    blocks, steps = blocks_of(float32.model), float32["inputs/steps"]
    encoded = encode(blocks, float32["inputs/source"], kept(float32, case, "encoder"))
    past, keep = Growing(len(blocks.decoder)), kept(float32, case, "decoder")
    logits = [
        decode(blocks, encoded, steps[:, n : n + 1], past=past, start=n, keep=keep) for n in range(steps.shape[1])
    ]
    assert relative(torch.cat(logits, dim=1), float32[f"{case}/steps_logits"]) <= FLOAT32


@torch.inference_mode()
def test_encoder_without_padding(float32):
    """Each sentence alone: nothing is hidden, so nothing is said about it."""
    blocks = blocks_of(float32.model)
    for ids, valid, theirs in zip(
        float32["inputs/source"], float32["inputs/source_valid"], float32["full/encoder"], strict=True
    ):
        encoded = encode(blocks, ids[valid][None])
        assert encoded.visible is None
        assert relative(encoded.memory[0], theirs[valid]) <= FLOAT32


def test_tokens_of_the_model(float32):
    blocks = blocks_of(float32.model)
    assert (blocks.start, blocks.end, blocks.pad) == (2, 2, 1)
    assert (len(blocks.encoder), len(blocks.decoder)) == (4, 4)


def test_a_family_may_have_no_blocks(float32, monkeypatch):
    monkeypatch.setitem(FAMILIES, "nllb-moe", dataclasses.replace(FAMILIES["nllb-moe"], blocks=None))
    assert blocks_of(float32.model) is None


# a dense model


@torch.inference_mode()
def test_dense():
    model = load_model("mini-dense")
    blocks = blocks_of(model)
    generator = torch.Generator().manual_seed(5)
    words = torch.randint(4, 6000, (5, 20), generator=generator)
    source, target = words[:, :12].clone(), words[:, 12:].clone()
    for row, length in enumerate((12, 4, 7, 1, 9)):
        source[row, length:] = blocks.pad
    target[:, 0] = blocks.start
    theirs = model(input_ids=source, attention_mask=source.ne(blocks.pad).long(), decoder_input_ids=target)
    encoded = encode(blocks, source)
    valid = source.ne(blocks.pad)
    assert relative(encoded.memory[valid], theirs.encoder_last_hidden_state[valid]) <= FLOAT32
    assert relative(decode(blocks, encoded, target), theirs.logits) <= FLOAT32


# positions


@torch.inference_mode()
def test_positions_beyond_the_table_are_those_of_transformers():
    ours, theirs = load_model(TINY), load_model(TINY)
    blocks = blocks_of(ours)
    generator = torch.Generator().manual_seed(6)
    source = torch.randint(4, 94, (2, 150), generator=generator)
    target = torch.randint(4, 94, (2, 110), generator=generator)
    assert ours.model.encoder.embed_positions.weights.shape[0] < 110
    expected = theirs(input_ids=source, decoder_input_ids=target)
    blocks.reserve(110)
    encoded = encode(blocks, source)
    assert relative(encoded.memory, expected.encoder_last_hidden_state) <= FLOAT32
    assert relative(decode(blocks, encoded, target), expected.logits) <= FLOAT32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_that_grew_begins_as_before(dtype):
    model = load_model(TINY, dtype=dtype)
    tables = [stack.embed_positions for stack in (model.model.encoder, model.model.decoder)]
    before = [table.weights.clone() for table in tables]
    blocks_of(model).reserve(110)
    for table, first in zip(tables, before, strict=True):
        assert table.weights.dtype == dtype
        assert len(table.weights) >= 110 + 2 > len(first)
        assert torch.equal(table.weights[: len(first)], first)


@torch.inference_mode()
def test_reserving_less_changes_nothing():
    model = load_model(TINY)
    table = model.model.decoder.embed_positions
    held = table.weights
    blocks_of(model).reserve(64)
    assert table.weights is held
    blocks_of(model).reserve(65)
    grown = table.weights
    assert len(grown) >= 67
    blocks_of(model).reserve(3)
    assert table.weights is grown


@torch.inference_mode()
def test_a_longer_table_is_the_same_to_transformers():
    source, target = torch.tensor([[94, 7, 8, 9, 2]]), torch.tensor([[2, 95, 40, 41]])
    model = load_model(TINY)
    before = model(input_ids=source, decoder_input_ids=target).logits
    blocks_of(model).reserve(500)
    assert torch.equal(model(input_ids=source, decoder_input_ids=target).logits, before)


# masks


def test_masks_by_token():
    keep = torch.arange(12).view(2, 3, 2) % 3 > 0  # (rows, layers, experts)
    every = keep_by_token(keep, length=4)
    assert every.shape == (3, 8, 2)
    assert all(torch.equal(every[:, token], keep[token // 4]) for token in range(8))
    some = keep_by_token(keep, length=4, positions=torch.tensor([0, 3, 6]))
    assert torch.equal(some, every[:, [0, 3, 6]])
    assert keep_by_token(keep[:1], length=4).shape == (3, 1, 2)
