"""Control symbols change places, and all else is equal."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nllb_prune.on_fairseq2.vocabulary import (
    IN_FAIRSEQ2,
    IN_TRANSFORMERS,
    columns_for_transformers,
    ids_for_fairseq2,
    ids_for_transformers,
    listed_for_transformers,
    rows_for_fairseq2,
    rows_for_transformers,
)

IN_ORDER = ("<s>", "<pad>", "</s>", "<unk>")
IN_FAIRSEQ2S_ORDER = ("<pad>", "<unk>", "<s>", "</s>")


def test_each_symbol_has_its_number():
    assert tuple(IN_FAIRSEQ2S_ORDER.index(symbol) for symbol in IN_ORDER) == IN_FAIRSEQ2
    assert tuple(IN_ORDER.index(symbol) for symbol in IN_FAIRSEQ2S_ORDER) == IN_TRANSFORMERS


@given(
    ids=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    dtype=st.sampled_from([torch.int64, torch.int32]),
    rows=st.sampled_from([(-1,), (1, -1), (-1, 1, 1)]),
)
def test_ids_there_and_back(ids, dtype, rows):
    given_ids = torch.tensor(ids, dtype=dtype).view(rows)
    ours = ids_for_fairseq2(given_ids)
    assert ours.dtype == dtype
    assert ours.shape == given_ids.shape
    assert torch.equal(ids_for_transformers(ours), given_ids)
    assert torch.equal(ids_for_fairseq2(ids_for_transformers(given_ids)), given_ids)
    assert listed_for_transformers(ours.flatten()) == ids
    assert torch.equal(ours[given_ids >= 4], given_ids[given_ids >= 4])
    assert given_ids.flatten().tolist() == ids  # left as they were


def test_rows_follow_ids():
    embedding = torch.randn(9, 3)
    before, ids = embedding.clone(), torch.arange(9)
    rows = rows_for_fairseq2(embedding)
    assert torch.equal(rows[ids_for_fairseq2(ids)], embedding)
    assert torch.equal(rows_for_transformers(rows), embedding)
    assert torch.equal(embedding, before)
    assert not torch.equal(rows, embedding)


def test_columns_follow_ids():
    embedding, states = torch.randn(9, 3), torch.randn(2, 5, 3)
    logits = functional.linear(states, rows_for_fairseq2(embedding))
    ours = columns_for_transformers(logits)
    assert ours is logits
    assert torch.equal(ours, functional.linear(states, embedding))


@pytest.mark.fairseq2
def test_rows_are_those_that_fairseq2s_converter_makes():
    from fairseq2.models.nllb import NllbConfig, convert_nllb_state_dict

    embedding = torch.randn(11, 4)
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
    theirs = convert_nllb_state_dict({name: embedding.clone() for name in names}, NllbConfig())["final_proj.weight"]
    assert torch.equal(rows_for_fairseq2(embedding), theirs)


@pytest.mark.fairseq2
def test_numbers_are_those_of_fairseq2s_tokenizer():
    from fairseq2.data.tokenizers.hub import load_tokenizer

    told = load_tokenizer("nllb-prune-mini").vocab_info
    numbers = {"<s>": told.bos_idx, "<pad>": told.pad_idx, "</s>": told.eos_idx, "<unk>": told.unk_idx}
    assert tuple(numbers[symbol] for symbol in IN_ORDER) == IN_FAIRSEQ2
