"""Decode through transformers' `generate`: for families without blocks, and as the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.tokenization import pad


class ThroughTransformers:
    """The `BatchDecoder` of a transformers model."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model

    def groups(self, sentences: Sequence[Sentence], settings: SearchSettings) -> Iterable[Sequence[Sentence]]:
        """Group by target language and limit, of which a batch has one."""
        groups: dict[tuple[int, int], list[Sentence]] = {}
        for sentence in sentences:
            groups.setdefault((sentence.language, sentence.limit), []).append(sentence)
        return groups.values()

    def decode(self, sentences: Sequence[Sentence], settings: SearchSettings) -> list[list[Hypothesis]]:
        """Return the hypotheses of each, best first."""
        model, first, wanted = self._model, sentences[0], settings.alternatives
        padding = model.config.pad_token_id
        source = pad([sentence.source for sentence in sentences], padding).to(model.device)
        searched = (
            {}
            if settings.beams == 1
            else {
                "num_return_sequences": wanted,
                "length_penalty": settings.length_penalty,
                "early_stopping": settings.early_stopping,
            }
        )
        output = model.generate(
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
        end = model.config.eos_token_id
        totals = _greedy_totals(output, padding) if settings.beams == 1 else None
        hypotheses = []
        for n, row in enumerate(output.sequences.tolist()):
            words = row[2:]
            ended = end in words
            tokens = tuple(words[: words.index(end)] if ended else words)
            scale = (1 + len(tokens) + ended) ** settings.length_penalty
            total = float(output.sequences_scores[n]) * scale if totals is None else totals[n]
            hypotheses.append(Hypothesis(tokens, total, ended, total / scale))
        return [hypotheses[n * wanted : (n + 1) * wanted] for n in range(len(sentences))]


def _greedy_totals(output: Any, padding: int) -> list[float]:
    """Sum the log-probabilities of the tokens after the language token."""
    tokens: Tensor = output.sequences[:, 2:]
    steps = [logits.float().log_softmax(-1) for logits in output.logits[1:]]
    taken = torch.stack(steps, dim=1).gather(2, tokens[:, :, None])[:, :, 0]
    totals: list[float] = taken.masked_fill(tokens.eq(padding), 0).sum(1).tolist()
    return totals
