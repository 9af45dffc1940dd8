"""No stock sparse layer is ever used: 5.x computes it wrongly, and parity with 4.57.6 would not hold by accident."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import NllbMoeForConditionalGeneration
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.routing import mask_rows, routing
from nllb_prune.model.sparse_ffn import SparseFfn

TINY = Path(__file__).parent.parent / "reference" / "tiny"
MAJOR = int(transformers.__version__.split(".")[0])
DIRECTION = ("eng_Latn", "deu_Latn")


@pytest.fixture(scope="module")
def stock():
    return NllbMoeForConditionalGeneration.from_pretrained(TINY, attn_implementation="eager").eval()


def pruning():
    spec = load_spec(TINY)
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": ((0, 1, 5), (2, 6))} for stack in spec.stacks},
    )


def sparse_paths(model, kind):
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("pruned", [False, True])
def test_every_stock_layer_is_replaced(stock, pruned):
    model = load_model(TINY, masks=pruning(), direction=DIRECTION) if pruned else load_model(TINY)
    assert len(sparse_paths(stock, NllbMoeSparseMLP)) == 4
    assert sparse_paths(model, SparseFfn) == sparse_paths(stock, NllbMoeSparseMLP)
    assert sparse_paths(model, NllbMoeSparseMLP) == set()
    leftovers = {type(module).__name__ for module in model.modules() if "Moe" in type(module).__name__}
    assert not {name for name in leftovers if "Sparse" in name or "Router" in name or "Experts" in name}


def test_nothing_calls_the_stock_layer(stock, float32, monkeypatch):
    def forward(self, *arguments, **named):
        raise AssertionError("a stock sparse layer ran")

    monkeypatch.setattr(NllbMoeSparseMLP, "forward", forward)
    inputs = {
        "input_ids": float32["inputs/source"],
        "attention_mask": float32["inputs/source_valid"].long(),
    }
    with pytest.raises(AssertionError, match="stock sparse layer ran"):
        stock(**inputs, decoder_input_ids=float32["inputs/target"])
    masks = pruning()
    full, pruned = load_model(TINY), load_model(TINY, masks=masks, direction=DIRECTION)
    with torch.inference_mode(), routing(full, masks=mask_rows(masks, [DIRECTION])):
        expected = full(**inputs, decoder_input_ids=float32["inputs/target"]).logits
        for beams in (1, 2):
            full.generate(**inputs, forced_bos_token_id=95, num_beams=beams, max_new_tokens=4)
    with torch.inference_mode():
        ours = pruned(**inputs, decoder_input_ids=float32["inputs/target"]).logits
        pruned.generate(**inputs, forced_bos_token_id=95, max_new_tokens=4)
    assert float((ours - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_the_stock_layer_equals_the_reference_if_and_only_if_the_line_is_4(stock, float32):
    valid = float32["inputs/target_valid"]
    with torch.inference_mode():
        logits = stock(
            input_ids=float32["inputs/source"],
            attention_mask=float32["inputs/source_valid"].long(),
            decoder_input_ids=float32["inputs/target"],
            decoder_attention_mask=valid.long(),
            use_cache=False,
        ).logits
    expected = float32["full/logits"][valid]
    difference = float((logits[valid] - expected).abs().max() / expected.abs().max())
    assert (difference <= 1e-5) == (MAJOR == 4)
    assert difference <= 1e-5 or difference > 1e-2  # not a matter of rounding
