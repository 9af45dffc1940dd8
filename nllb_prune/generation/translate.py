"""Translate lines in one direction through transformers' `generate`, within a mask if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nllb_prune.masks import MaskSet
from nllb_prune.model.routing import mask_rows, routing, routing_of
from nllb_prune.tokenization import batches_by_length, encode, language_id, pad

BATCH_POSITIONS = 2048


def length_limit(source_length: int) -> int:
    """Return how many tokens may be generated for a source of so many: room enough for over-generation to show."""
    return 2 * source_length + 16


@torch.inference_mode()
def translate(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    source: str,
    target: str,
    masks: MaskSet | None = None,
    beams: int = 1,
) -> list[str]:
    """Translate texts, in their order; a text without a word comes back unchanged.

    Args:
        model: From `load_model`.
        tokenizer: Its tokenizer.
        texts: Sentences.
        source: Language of the texts.
        target: Language to translate into.
        masks: Uses the experts of this direction for this call alone; otherwise what is set on the model.
        beams: 1 is greedy.
    """
    runner: Any = model
    device = next(model.parameters()).device
    rows = None
    if masks is not None:
        masks.check_model(routing_of(model).spec)
        rows = mask_rows(masks, [(source, target)], device=device)
    outputs = list(texts)
    worded = [n for n, text in enumerate(texts) if text.strip()]
    ids = encode(tokenizer, [texts[n] for n in worded], source)
    forced = language_id(tokenizer, target)
    for group in batches_by_length([len(row) for row in ids], positions=BATCH_POSITIONS // beams):
        batch = pad([ids[n] for n in group], tokenizer.pad_token_id).to(device)
        with routing(model, masks=rows):
            generated = runner.generate(
                input_ids=batch,
                attention_mask=batch.ne(tokenizer.pad_token_id).long(),
                forced_bos_token_id=forced,
                num_beams=beams,
                do_sample=False,
                max_new_tokens=length_limit(batch.shape[1]),
            )
        # each text has its own limit, whatever the batch it is in
        own = [row[: 1 + length_limit(len(ids[n]))] for n, row in zip(group, generated, strict=True)]
        decoded = tokenizer.batch_decode(own, skip_special_tokens=True)
        for n, text in zip(group, decoded, strict=True):
            outputs[worded[n]] = text.strip()
    return outputs
