"""Attention and positions of the models that the verbs run on, against fairseq2's own and transformers'."""

import pytest
import torch

from tests.on_fairseq2.sides import Pairs, assert_equal, eager, fairseq2_states, load_by_card

pytestmark = pytest.mark.fairseq2


def attentions(model):
    from fairseq2.models.transformer import StandardMultiheadAttention

    return [each for each in model.modules() if isinstance(each, StandardMultiheadAttention)]


@pytest.fixture(scope="module")
def model():
    return eager(load_by_card("mini"))


def with_short_target(pairs):
    """The longest source and no other has the shortest target: padding of a target beside a source without any."""
    by_length = sorted(pairs.sources, key=len)
    return Pairs(by_length, sorted(pairs.prefixes, key=len, reverse=True))


def test_padding_beside_a_source_without_any(model, mini, pairs):
    from fairseq2.models.transformer import NaiveSDPA

    crossed = with_short_target(pairs)
    assert_equal(model, mini, crossed)
    naive = load_by_card("mini")
    for each in attentions(naive):
        each.sdpa = NaiveSDPA(each.sdpa.bias)
    _, logits = fairseq2_states(naive, crossed)
    assert logits.isnan().any()  # once it is not, fairseq2's own can be used


@pytest.mark.parametrize("together", [True, False])
def test_outputs_are_those_of_transformers(together, model, mini, pairs):
    for some in [pairs] if together else map(pairs.row, range(5)):
        assert_equal(model, mini, some)


def test_packed_rows(model, pairs):
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.vocabulary import columns_for_transformers, ids_for_fairseq2

    def packed(rows):
        ids = ids_for_fairseq2(torch.tensor([number for row in rows for number in row]))
        return ids, BatchLayout.of(ids, [len(row) for row in rows], packed=True)

    few = Pairs(pairs.sources[:5], pairs.prefixes[:5])
    source, prefix = packed(few.sources), packed(few.prefixes)
    with torch.inference_mode():
        memory = model.encoder(*model.encoder_frontend(*source))
        logits = columns_for_transformers(model(*source, *prefix))
    their_memory, their_logits = fairseq2_states(model, few)
    torch.testing.assert_close(memory, their_memory, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits, their_logits, rtol=1e-5, atol=1e-5)


def test_weights_scale_and_dropout():
    from fairseq2.models.transformer import AttentionBiasCache, CausalAttentionBias
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.attention import EagerSDPA

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 3, 8) for _ in range(3))
    layout = BatchLayout((2, 4), [4, 2])
    attention = EagerSDPA(CausalAttentionBias(), dropout_p=0.5, scale=0.1).eval()
    mixed, weights = attention(q, layout, k, layout, v, AttentionBiasCache(), needs_weights=True)
    future = torch.ones(4, 4, dtype=torch.bool).triu(1)
    expected = (torch.einsum("nqhd,nkhd->nhqk", q, k) * 0.1).masked_fill(future, -torch.inf).softmax(-1)
    torch.testing.assert_close(weights[0], expected[0])
    torch.testing.assert_close(weights[1, :, :2], expected[1, :, :2])
    assert (weights[1, :, :2, 2:] == 0).all()
    torch.testing.assert_close(mixed[0], torch.einsum("hqk,khd->qhd", expected[0], v[0]))
    assert attention(q, layout, k, layout, v, AttentionBiasCache())[1] is None
    attention.train()
    _, dropped = attention(q, layout, k, layout, v, AttentionBiasCache(), needs_weights=True)
    kept = (dropped[0] != 0)[:, ~future]
    assert 0.2 < kept.float().mean() < 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_that_see_nothing(dtype):
    """However low their scores are: nothing overflows."""
    from fairseq2.models.transformer import AttentionBiasCache, IdentityBias
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.attention import EagerSDPA

    states = torch.full((2, 4, 3, 8), 20.0, dtype=dtype)
    targets, sources = BatchLayout((2, 4), [4, 2]), BatchLayout((2, 4), [4, 4])
    mixed, _ = EagerSDPA(IdentityBias())(states, targets, -states, sources, states, AttentionBiasCache())
    assert mixed.isfinite().all()


def test_attentions_are_exchanged_as_they_were_made():
    from fairseq2.models.transformer import CausalAttentionBias, TorchSDPA, get_default_sdpa_factory

    from nllb_prune.on_fairseq2 import loading
    from nllb_prune.on_fairseq2.attention import EagerSDPA

    before = get_default_sdpa_factory()
    model = loading.load_model("mini-dense").inner
    assert get_default_sdpa_factory() is before
    assert {type(each.sdpa) for each in attentions(model)} == {EagerSDPA}
    biases = [(type(a.self_attn.sdpa.bias), type(a.encoder_decoder_attn.sdpa.bias)) for a in model.decoder.layers]
    plain = load_by_card("mini-dense")
    expected = [(type(a.self_attn.sdpa.bias), type(a.encoder_decoder_attn.sdpa.bias)) for a in plain.decoder.layers]
    assert biases == expected
    assert {each[0] for each in biases} == {CausalAttentionBias}
    one = plain.encoder.layers[0].self_attn
    one.sdpa = TorchSDPA(one.sdpa.bias, dropout_p=0.25, scale=0.5)
    eager(plain)
    assert (type(one.sdpa), one.sdpa.dropout_p, one.sdpa.scale) == (EagerSDPA, 0.25, 0.5)
    assert "dropout_p=0.25, scale=0.5" in repr(one)
