from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import routing
from nllb_prune.model.teacher_forcing import IGNORED, decoder_states, encoder_states, forced_batch, forced_states

SIDES = ("source", "target")
REFERENCE = Path(__file__).parent.parent / "reference"


@pytest.fixture(scope="module")
def tiny():
    return load_model(REFERENCE / "tiny")


def test_a_batch_is_padded_and_shifted(tiny):
    batch = forced_batch(tiny, [[94, 7, 2], [94, 2]], [[95, 8, 9, 2], [95, 2]])
    assert batch.source.tolist() == [[94, 7, 2], [94, 2, 1]]
    assert batch.decoder_input.tolist() == [[2, 95, 8, 9], [2, 95, 1, 1]]
    assert batch.labels.tolist() == [[95, 8, 9, 2], [95, 2, IGNORED, IGNORED]]


@pytest.fixture(scope="module")
def tensors():
    return load_file(REFERENCE / "float32.safetensors")


@pytest.fixture(scope="module")
def batch(tiny, tensors):
    source, target = (
        [[token for token in row.tolist() if token != 1] for row in tensors[f"inputs/{side}"]] for side in SIDES
    )
    return forced_batch(tiny, source, [[*row[1:], 2] for row in target])


@torch.inference_mode()
def test_states_give_the_logits_of_transformers(tiny, tensors, batch):
    assert torch.equal(batch.decoder_input, tensors["inputs/target"])
    counted = batch.labels.ne(IGNORED)
    logits = tiny.get_output_embeddings()(forced_states(tiny, batch))
    torch.testing.assert_close(logits[counted], tensors["full/logits"][counted], rtol=1e-5, atol=1e-4)


def masks_of(tensors, case):
    """Kept experts by stack; the reference has the two layers of the encoder first."""
    return (
        None if case == "full" else {"encoder": tensors["masks/kept"][:1, :2], "decoder": tensors["masks/kept"][:1, 2:]}
    )


@pytest.mark.parametrize("case", ["full", "masked"])
@torch.inference_mode()
def test_the_two_halves_are_the_whole(tiny, tensors, batch, case):
    with routing(tiny, masks=masks_of(tensors, case)):
        assert torch.equal(decoder_states(tiny, batch, encoder_states(tiny, batch)), forced_states(tiny, batch))


@pytest.mark.parametrize("case", ["full", "masked"])
@torch.inference_mode()
def test_each_half_is_that_of_transformers(tiny, tensors, batch, case):
    visible, counted = tensors["inputs/source_valid"], batch.labels.ne(IGNORED)
    with routing(tiny, masks=masks_of(tensors, case)):
        encoded = encoder_states(tiny, batch)
        logits = tiny.get_output_embeddings()(decoder_states(tiny, batch, tensors[f"{case}/encoder"]))
    torch.testing.assert_close(encoded[visible], tensors[f"{case}/encoder"][visible], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits[counted], tensors[f"{case}/logits"][counted], rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_the_encoder_sees_its_own_masks_only(tiny, tensors, batch):
    masks, states = masks_of(tensors, "masked"), forced_states(tiny, batch)
    full, everything = encoder_states(tiny, batch), torch.ones_like(masks["encoder"])
    with routing(tiny, masks={"encoder": everything, "decoder": masks["decoder"]}):
        assert torch.equal(encoder_states(tiny, batch), full)
        assert not torch.equal(decoder_states(tiny, batch, full), states)
    with routing(tiny, masks=masks):
        assert not torch.equal(encoder_states(tiny, batch), full)
