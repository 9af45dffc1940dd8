"""Ours against tensors frozen from transformers 4.57.6, on whichever line of transformers is installed."""

import pytest
import torch

from nllb_prune.model.routing import routing
from nllb_prune.model.sparse_ffn import SparseFfn

CASES = ("full", "masked", "mixed")

# float32: the two sum in different orders, 6e-8 a rounding over about 100 of them.
# bfloat16: 8 bits of mantissa, a rounding is 2**-9 = 2e-3 of a value. A layer rounds as 4.57.6 does and in the same
# places, so it may differ where a product was summed in another order, by one rounding. Through 8 layers such
# differences add up like a random walk, of values up to 4 times the logits' spread: 4 * sqrt(8 * 3) * 2e-3 = 0.04.
FLOAT32 = 1e-5
BFLOAT16_LAYER = 2**-7
BFLOAT16_MODEL = 0.04


def relative(ours, theirs):
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def decoder_logits(reference, case, inputs, *, valid=None, encoder_valid=True):
    source, source_valid = reference["inputs/source"], reference["inputs/source_valid"]
    with routing(reference.model, masks=reference.masks(case)), torch.inference_mode():
        return reference.model(
            input_ids=source,
            attention_mask=source_valid.long(),
            decoder_input_ids=inputs,
            decoder_attention_mask=valid,
            use_cache=False,
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("layer", "padding"), [("encoder.1", True), ("encoder.1", False), ("decoder.3", False)])
@pytest.mark.parametrize(("name", "bound"), [("float32", FLOAT32), ("bfloat16", BFLOAT16_LAYER)])
def test_layer(request, name, bound, case, layer, padding):
    reference = request.getfixturevalue(name)
    stack, index = layer.split(".")
    sparse = reference.model.get_submodule(f"model.{stack}.layers.{index}.ffn")
    assert isinstance(sparse, SparseFfn)
    hidden = reference[f"layer/{layer}/input"]
    valid = reference["inputs/source_valid"] if padding else torch.ones(hidden.shape[:2], dtype=torch.bool)
    seen = []

    class Observer:
        wants_outputs = False

        def observe(self, stack, number, routed):
            seen.append(routed)

    state = reference.model.expert_routing.stacks[stack]
    with routing(reference.model, masks=reference.masks(case), observer=Observer()), torch.inference_mode():
        state.valid = valid if padding else None
        output = sparse(hidden)
        state.valid = None
    output = output[0] if isinstance(output, tuple) else output
    expected = {
        part: reference[f"{case}/layer/{layer}/{'padded' if padding else 'unpadded'}/{part}"]
        for part in ("output", "experts", "weights", "gap")
    }
    assert relative(output[valid], expected["output"][valid]) <= bound
    assert (output[~valid] == 0).all()
    decisive = expected["gap"][valid] > 1e-3
    assert decisive.float().mean() > 0.9
    assert torch.equal(seen[0].chosen[decisive], expected["experts"][valid][decisive])
    assert relative(seen[0].gates[decisive], expected["weights"][valid][decisive]) <= bound


@pytest.mark.parametrize("case", CASES)
def test_whole_model_float32(float32, case):
    valid = float32["inputs/target_valid"]
    output = decoder_logits(float32, case, float32["inputs/target"], valid=valid.long())
    assert relative(output.logits[valid], float32[f"{case}/logits"][valid]) <= FLOAT32
    source_valid = float32["inputs/source_valid"]
    encoder = output.encoder_last_hidden_state
    assert relative(encoder[source_valid], float32[f"{case}/encoder"][source_valid]) <= FLOAT32


@pytest.mark.parametrize("case", CASES)
def test_whole_model_bfloat16(bfloat16, case):
    valid = bfloat16["inputs/target_valid"]
    output = decoder_logits(bfloat16, case, bfloat16["inputs/target"], valid=valid.long())
    assert relative(output.logits[valid], bfloat16[f"{case}/logits"][valid]) <= BFLOAT16_MODEL


@pytest.mark.parametrize("case", CASES)
def test_decoding_with_cache(float32, case):
    steps = float32["inputs/steps"]
    source, source_valid = float32["inputs/source"], float32["inputs/source_valid"].long()
    with routing(float32.model, masks=float32.masks(case)), torch.inference_mode():
        memory = float32.model.get_encoder()(input_ids=source, attention_mask=source_valid)
        cache, logits = None, []
        for position in range(steps.shape[1]):
            output = float32.model(
                encoder_outputs=memory,
                attention_mask=source_valid,
                decoder_input_ids=steps[:, position : position + 1],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            logits.append(output.logits)
    assert relative(torch.cat(logits, dim=1), float32[f"{case}/steps_logits"]) <= FLOAT32


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("greedy", {"num_beams": 1}),
        ("beam", {"num_beams": 4, "length_penalty": 1.0, "early_stopping": False}),
        ("beam_early", {"num_beams": 4, "length_penalty": 1.0, "early_stopping": True}),
    ],
)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_generate(request, name, case, expected, options):
    reference = request.getfixturevalue(name)
    if name == "bfloat16" and expected != "greedy":
        options = options | {}  # beams sum log-probabilities in float32: the same tokens are asked for
    with routing(reference.model, masks=reference.masks(case)), torch.inference_mode():
        generated = reference.model.generate(
            input_ids=reference["inputs/source"],
            attention_mask=reference["inputs/source_valid"].long(),
            forced_bos_token_id=95,
            do_sample=False,
            max_new_tokens=12,
            **options,
        )
    theirs = reference[f"{case}/{expected}"]
    padded = torch.full_like(theirs, 1)
    padded[:, : generated.shape[1]] = generated
    assert torch.equal(padded, theirs)
