"""Attention and positions of the models that the verbs run on, against fairseq2's own and transformers'."""

import pytest
import torch

from tests.on_fairseq2.sides import Pairs, assert_equal, fairseq2_states, load_by_card

pytestmark = pytest.mark.fairseq2


@pytest.fixture
def loaded():
    """Loads `mini` by its card while models are given this or that attention."""
    from fairseq2.models.transformer import get_default_sdpa_factory, set_default_sdpa_factory

    before = get_default_sdpa_factory()

    def load(attention):
        set_default_sdpa_factory(attention)
        return load_by_card("mini")

    yield load
    set_default_sdpa_factory(before)


@pytest.fixture(scope="module")
def eager():
    from nllb_prune.on_fairseq2.attention import eager_attention

    with eager_attention():
        return load_by_card("mini")


def with_short_target(pairs):
    """The longest source and no other has the shortest target: padding of a target beside a source without any."""
    by_length = sorted(pairs.sources, key=len)
    return Pairs(by_length, sorted(pairs.prefixes, key=len, reverse=True))


def test_padding_beside_a_source_without_any(eager, mini, pairs, loaded):
    from fairseq2.models.transformer import NaiveSDPA

    crossed = with_short_target(pairs)
    assert_equal(eager, mini, crossed)
    _, logits = fairseq2_states(loaded(NaiveSDPA), crossed)
    assert logits.isnan().any()  # once it is not, fairseq2's own can be used


@pytest.mark.parametrize("together", [True, False])
def test_outputs_are_those_of_transformers(together, eager, mini, pairs):
    for some in [pairs] if together else map(pairs.row, range(5)):
        assert_equal(eager, mini, some)


def test_packed_rows(eager, pairs):
    from fairseq2.nn import BatchLayout

    from nllb_prune.on_fairseq2.vocabulary import ids_for_fairseq2

    rows = pairs.sources[:5]
    ids = ids_for_fairseq2(torch.tensor([number for row in rows for number in row]))
    layout = BatchLayout.of(ids, [len(row) for row in rows], packed=True)
    with torch.inference_mode():
        found = eager.encoder(*eager.encoder_frontend(ids, layout))
    expected, _ = fairseq2_states(eager, Pairs(rows, pairs.prefixes[:5]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


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


def test_the_setting_of_fairseq2_stays(loaded):
    from fairseq2.models.transformer import TorchSDPA, get_default_sdpa_factory

    from nllb_prune.on_fairseq2 import loading
    from nllb_prune.on_fairseq2.attention import EagerSDPA, eager_attention

    before = get_default_sdpa_factory()
    model = loading.load_model("mini-dense")
    assert type(model.inner.encoder.layers[0].self_attn.sdpa) is EagerSDPA
    assert get_default_sdpa_factory() is before
    with pytest.raises(ZeroDivisionError), eager_attention():
        1 / 0  # noqa: B018
    assert get_default_sdpa_factory() is before
    own = loaded(TorchSDPA)
    assert {type(layer.self_attn.sdpa) for layer in own.decoder.layers} == {TorchSDPA}
