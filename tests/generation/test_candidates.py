"""The best continuations are those of a plain search over all log-probabilities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.generation.candidates import best_continuations


def plain(logits, before, count):
    log_probabilities = logits.float().log_softmax(-1) + before[:, :, None]
    scores, index = log_probabilities.flatten(1).topk(count)
    return scores, index % logits.shape[-1], index // logits.shape[-1]


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 5),
    beams=st.integers(1, 5),
    first=st.booleans(),
    vocabulary=st.sampled_from([10, 11, 16, 17, 60, 144, 145, 1000, 6012]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_as_a_plain_search(rows, beams, first, vocabulary, dtype, seed):
    """In the first step there is one beam to continue, whatever is wanted."""
    generator = torch.Generator().manual_seed(seed)
    count = 1 if beams == 1 else 2 * beams
    here = 1 if first else beams
    logits = (10 * torch.randn(rows, here, vocabulary, generator=generator)).to(dtype)
    before = -20 * torch.rand(rows, here, generator=generator)
    scores, tokens, parents = plain(logits, before, min(count + 1, here * vocabulary))
    apart = (scores[:, :-1] - scores[:, 1:] > 1e-4).all(1)  # ties may come in any order
    scores, tokens, parents = (part[:, :count] for part in (scores, tokens, parents))
    ours = best_continuations(logits.clone(), before, count)
    assert [part.shape for part in ours] == [(rows, count)] * 3
    torch.testing.assert_close(ours[0], scores, atol=1e-5, rtol=1e-6)
    found = logits.float().log_softmax(-1)[torch.arange(rows)[:, None], ours[2], ours[1]]
    torch.testing.assert_close(found + before.gather(1, ours[2]), ours[0], atol=1e-5, rtol=1e-6)
    pairs = [set(zip(t, p, strict=True)) for t, p in zip(ours[1].tolist(), ours[2].tolist(), strict=True)]
    assert all(len(pair) == count for pair in pairs)
    assert torch.equal(ours[1][apart], tokens[apart])
    assert torch.equal(ours[2][apart], parents[apart])


@pytest.mark.parametrize("place", [0, 1, 76, 77, 78, 5928, 5929, 6005, 6006, 6011])
def test_wherever_the_best_is(place):
    logits = torch.zeros(1, 2, 6012)
    logits[0, 1, place] = 30.0
    scores, tokens, parents = best_continuations(logits, torch.tensor([[-1.0, -2.0]]), 4)
    assert (tokens[0, 0], parents[0, 0]) == (place, 1)
    assert float(scores[0, 0]) == pytest.approx(-2.0, abs=1e-5)
    assert (parents[0, 1:] == 0).all()


def test_the_best_are_in_one_place():
    """Next to each other, so in one piece of the vocabulary."""
    logits = torch.zeros(1, 1, 6012)
    logits[0, 0, 100:108] = torch.arange(8.0, 0.0, -1.0) + 20
    _, tokens, _ = best_continuations(logits, torch.zeros(1, 1), 8)
    assert tokens.tolist() == [list(range(100, 108))]
