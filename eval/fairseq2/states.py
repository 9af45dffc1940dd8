"""Outputs of encoders and logits, number by number: with the verbs' attention, and with that of fairseq2's loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq2.assets import AssetCard
from torch import Tensor

from eval.fairseq2.common import TEST, fused
from eval.fairseq2.models import Compared, compared_models
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import mask_rows, routing
from nllb_prune.model.source import load_tokenizer
from nllb_prune.model.teacher_forcing import IGNORED, decoder_states, encoder_states, forced_batch
from nllb_prune.on_fairseq2 import loading
from nllb_prune.on_fairseq2.card import card_of
from nllb_prune.tokenization import encode

WITHIN = 1e-5


def study(work: Path, *, sentences: int) -> list[dict[str, Any]]:
    """Compare each model on so many sentence pairs of each direction."""
    return [_compared(each, sentences) for each in compared_models(work)]


def _compared(compared: Compared, sentences: int) -> dict[str, Any]:
    card = AssetCard("compared", card_of(compared.model, name="compared"))
    ours = load_model(compared.model)
    others = {"the verbs'": loading.load_model(compared.model), "fused": fused(card)}
    found = {name: {"memory": 0.0, "logits": 0.0, "beyond": 0} for name in others}
    numbers = {"memory": 0, "logits": 0}
    tokenizer, count = load_tokenizer(compared.model), compared.count(sentences)
    for direction in compared.directions:
        sides = [encode(tokenizer, TEST.lines(code)[:count], code) for code in direction]
        keep = None if compared.masks is None else mask_rows(compared.masks, [direction])
        expected = _states(ours, sides, keep)
        for name, values in expected.items():
            numbers[name] += values.numel()
        for name, model in others.items():
            for what, values in _states(model, sides, keep).items():
                apart = (values - expected[what]).abs()
                found[name][what] = max(found[name][what], float(apart.max()))
                found[name]["beyond"] += int((apart > WITHIN).sum())
    return {"model": compared.name, "directions": len(compared.directions), "numbers": numbers, "attention": found}


def _states(model: Any, sides: Sequence[list[list[int]]], keep: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the output of the encoder and the logits, without padding."""
    batch = forced_batch(model, *sides)
    with torch.inference_mode(), routing(model, masks=keep):
        memory = encoder_states(model, batch)
        logits = model.get_output_embeddings()(decoder_states(model, batch, memory))
    return {"memory": memory[batch.source.ne(model.config.pad_token_id)], "logits": logits[batch.labels.ne(IGNORED)]}
