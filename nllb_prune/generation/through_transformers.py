"""Decode through transformers' `generate`: for families without blocks, and as the oracle."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.model.routing import routing
from nllb_prune.tokenization import batches_by_length, pad


@torch.inference_mode()
def generate(
    model: nn.Module,
    sentences: Sequence[Sentence],
    settings: SearchSettings,
    done: dict[Hashable, list[Hypothesis]],
    *,
    rows: int,
    positions: int,
) -> None:
    """Decode sentences and add their hypotheses, best first, to `done` by key, batch by batch.

    A batch has one target language and one limit, so sentences of several take more batches than in the loop. A stack
    without a mask in `Sentence.keep` uses all experts, or the mask that is set on the model.
    """
    groups: dict[tuple[int, int, tuple[tuple[str, int], ...]], list[Sentence]] = {}
    for sentence in sentences:
        masks = tuple((name, id(tensor)) for name, tensor in sorted(sentence.keep.items()))
        groups.setdefault((sentence.language, sentence.limit, masks), []).append(sentence)
    for alike in groups.values():
        lengths = [len(sentence.source) for sentence in alike]
        for batch in batches_by_length(lengths, positions=max(1, positions // settings.beams)):
            for first in range(0, len(batch), rows):
                done |= _generate(model, [alike[n] for n in batch[first : first + rows]], settings)


def _generate(
    model: nn.Module, sentences: Sequence[Sentence], settings: SearchSettings
) -> dict[Hashable, list[Hypothesis]]:
    runner: Any = model
    first, wanted = sentences[0], settings.alternatives
    padding = runner.config.pad_token_id
    source = pad([sentence.source for sentence in sentences], padding).to(runner.device)
    searched = (
        {}
        if settings.beams == 1
        else {
            "num_return_sequences": wanted,
            "length_penalty": settings.length_penalty,
            "early_stopping": settings.early_stopping,
        }
    )
    with routing(model, masks={name: keep.unsqueeze(0) for name, keep in first.keep.items()} or None):
        output = runner.generate(
            input_ids=source,
            attention_mask=source.ne(padding).long(),
            forced_bos_token_id=first.language,
            do_sample=False,
            num_beams=settings.beams,
            max_new_tokens=first.limit,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=settings.beams == 1,
            **searched,
        )
    end = runner.config.eos_token_id
    totals = _greedy_totals(output, padding) if settings.beams == 1 else None
    hypotheses = []
    for n, row in enumerate(output.sequences.tolist()):
        words = row[2:]
        ended = end in words
        tokens = tuple(words[: words.index(end)] if ended else words)
        scale = (1 + len(tokens) + ended) ** settings.length_penalty
        total = float(output.sequences_scores[n]) * scale if totals is None else totals[n]
        hypotheses.append(Hypothesis(tokens, total, ended, total / scale))
    return {s.key: hypotheses[n * wanted : (n + 1) * wanted] for n, s in enumerate(sentences)}


def _greedy_totals(output: Any, padding: int) -> list[float]:
    """Sum the log-probabilities of the tokens after the language token."""
    tokens: Tensor = output.sequences[:, 2:]
    steps = [logits.float().log_softmax(-1) for logits in output.logits[1:]]
    taken = torch.stack(steps, dim=1).gather(2, tokens[:, :, None])[:, :, 0]
    totals: list[float] = taken.masked_fill(tokens.eq(padding), 0).sum(1).tolist()
    return totals
