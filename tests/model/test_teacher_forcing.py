from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nllb_prune.model.loading import load_model
from nllb_prune.model.teacher_forcing import IGNORED, forced_batch, forced_states

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


@torch.inference_mode()
def test_states_give_the_logits_of_transformers(tiny):
    tensors = load_file(REFERENCE / "float32.safetensors")
    source, target = (
        [[token for token in row.tolist() if token != 1] for row in tensors[f"inputs/{side}"]] for side in SIDES
    )
    batch = forced_batch(tiny, source, [[*row[1:], 2] for row in target])
    assert torch.equal(batch.decoder_input, tensors["inputs/target"])
    counted = batch.labels.ne(IGNORED)
    logits = tiny.get_output_embeddings()(forced_states(tiny, batch))
    torch.testing.assert_close(logits[counted], tensors["full/logits"][counted], rtol=1e-5, atol=1e-4)
