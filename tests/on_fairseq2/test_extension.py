"""fairseq2 loads what the extension registers, by name and by card, and computes what transformers' side does."""

import pytest
import torch

from nllb_prune import load_model, load_tokenizer
from nllb_prune.model.source import model_folder
from tests.on_fairseq2.sides import (
    CPU,
    Pairs,
    assert_equal,
    assert_same,
    eager,
    fairseq2_states,
    load_by_card,
    transformers_states,
)
from tests.weights import test_original_layout as original

pytestmark = pytest.mark.fairseq2

ONE = (("eng_Latn", "deu_Latn"),)
AMONG_TWO = (("eng_Latn", "deu_Latn"), ("deu_Latn", "eng_Latn"))
ONE_TO_TWO = (("eng_Latn", "deu_Latn"), ("eng_Latn", "hin_Deva"))
EXPORTS = {
    "one direction": (ONE, {}),
    "union": (AMONG_TWO, {}),
    "parts": (ONE_TO_TWO, {"parts": True}),
    "int8": (ONE, {"experts": "int8"}),
    "int4": (ONE, {"experts": "int4"}),
    "bfloat16": (ONE, {"dtype": torch.bfloat16}),
    "trimmed": (ONE, {"trimmed": True}),
    "trimmed int4 in parts": (ONE_TO_TWO, {"trimmed": True, "experts": "int4", "parts": True}),
}


@pytest.mark.parametrize("name", ["mini", "mini-dense"])
def test_embedded_models_load_by_name(name, pairs, request):
    from fairseq2.models.hub import load_model as load_by_name
    from fairseq2.models.transformer import TransformerModel

    model = load_by_name(f"nllb-prune-{name}", device=CPU, dtype=torch.float32).eval()
    assert type(model) is TransformerModel
    assert_same(model, request.getfixturevalue(name.replace("-", "_")), pairs)


@pytest.mark.parametrize(("directions", "settings"), EXPORTS.values(), ids=EXPORTS)
def test_an_export_loads_by_its_card(directions, settings, exports):
    folder = exports(directions, **settings)
    for source, target in directions:
        sentences = Pairs.of(load_tokenizer(folder), source=source, target=target)
        assert_same(load_by_card(folder), load_model(folder), sentences)
        assert_equal(eager(load_by_card(folder)), load_model(folder), sentences)


def test_what_fairseq_wrote_loads_by_its_card(tmp_path, pairs, mini):
    folder = original.write(tmp_path / "original", experts_of_a_rank=16)
    assert_same(load_by_card(folder), mini, pairs)
    whole = fairseq2_states(load_by_card("mini"), pairs)
    assert all(map(torch.equal, fairseq2_states(load_by_card(folder), pairs), whole))


def test_what_fairseq_wrote_of_a_dense_model_loads_by_its_card(tmp_path, pairs, mini_dense):
    assert_same(load_by_card(original.write_dense(tmp_path / "original")), mini_dense, pairs)


def test_a_pruned_model_is_not_the_whole_one(exports, pairs, mini):
    """What the comparisons above would not notice of a loader that takes no heed of the card."""
    with pytest.raises(AssertionError, match="not close"):
        assert_same(load_by_card(exports()), mini, pairs)


@pytest.mark.parametrize("settings", [{}, {"dtype": torch.bfloat16}, {"experts": "int4"}], ids=str)
def test_bfloat16_leaves_routers_in_float32(settings, exports, pairs):
    folder = exports(**settings)
    model = load_by_card(folder, dtype=torch.bfloat16)
    dtypes = {name: each.dtype for name, each in model.named_parameters()}
    routers = {name for name in dtypes if name.endswith("router_weight")}
    assert len(routers) == 6
    assert {dtypes[name] for name in routers} == {torch.float32}
    whole_numbers = {name for name in dtypes if name.endswith(("_packed", "_shape"))}
    assert bool(whole_numbers) == ("experts" in settings)
    assert not any(dtypes[name].is_floating_point for name in whole_numbers)
    assert {dtypes[name] for name in dtypes.keys() - routers - whole_numbers} == {torch.bfloat16}
    ours, theirs = fairseq2_states(model, pairs)[1], transformers_states(load_model(folder), pairs)[1]
    assert ours.dtype == torch.bfloat16
    divergence = torch.nn.functional.kl_div(
        ours.float().log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert 0 < float(divergence) < 0.005


def test_the_hubs_of_the_family():
    from fairseq2.assets import get_asset_store
    from fairseq2.models.nllb import NllbTokenizer

    from nllb_prune.on_fairseq2.config import NllbMoeConfig
    from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub, get_nllb_moe_tokenizer_hub

    hub = get_nllb_moe_model_hub()
    assert hub.get_archs() == {"moe_54b"}
    assert hub.get_arch_config("moe_54b") == NllbMoeConfig()
    assert get_asset_store().asset_names >= {"nllb-prune-mini@", "nllb-prune-mini-dense@"}
    assert hub.get_model_config("nllb-prune-mini").encoder_sparse_layers == [1, 3, 5]
    model = hub.load_model("nllb-prune-mini", device=CPU)
    assert model.encoder_frontend.embed.weight.shape == (6012, 160)
    tokenizer = get_nllb_moe_tokenizer_hub().load_tokenizer("nllb-prune-mini")
    assert type(tokenizer) is NllbTokenizer
    assert tokenizer.vocab_info.size == 6012


def test_the_architecture_by_default_is_that_of_nllb_200():
    """54.5 billion parameters, as the paper has it (NLLB Team et al. 2022, table 30)."""
    from nllb_prune.on_fairseq2.config import NllbMoeConfig
    from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub

    model = get_nllb_moe_model_hub().create_new_model(NllbMoeConfig(), meta=True)
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(54.5e9, rel=0.002)


def test_a_card_on_top_of_another(pairs, exports):
    """As users write them: the tokenizer and the checkpoint of one, a field of the configuration of their own."""
    from fairseq2.assets import AssetCard, get_asset_store
    from fairseq2.models.hub import load_model as load_asset

    base = get_asset_store().retrieve_card("nllb-prune-mini")
    card = AssetCard("own", {"model_config": {"max_seq_len": 64}, "checkpoint": str(model_folder("mini"))}, base)
    model = load_asset(card, device=CPU, dtype=torch.float32).eval()
    assert model.max_source_seq_len == 64
    usual = fairseq2_states(load_by_card("mini"), pairs)
    assert all(map(torch.equal, fairseq2_states(model, pairs), usual))
