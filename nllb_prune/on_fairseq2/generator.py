"""Decode with fairseq2's beam search, of which one beam is greedy search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from fairseq2.data.tokenizers import VocabularyInfo
from fairseq2.generation import Hypothesis as Found
from fairseq2.generation.beam_search import BeamSearchSeq2SeqGenerator
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.on_fairseq2.vocabulary import ids_for_fairseq2, ids_for_transformers
from nllb_prune.tokenization import pad

_PROMPT = 2
"""`</s>` and the language token."""
_PAD, _UNK, _BOS, _EOS = range(4)
_TRANSFORMERS_PAD, _TRANSFORMERS_EOS = 1, 2


class ThroughFairseq2:
    """The `BatchDecoder` of a fairseq2 model.

    Its search stops at as many finished hypotheses as beams, and counts the language token among what they are scored
    by, so that with several beams it may find others than ours. The last token that the limit leaves room for is `</s>`
    in fairseq2, whatever the model thinks of it; such a hypothesis counts as cut, without it.
    """

    def __init__(self, model: TransformerModel) -> None:
        self._model = model

    def groups(self, sentences: Sequence[Sentence], settings: SearchSettings) -> Iterable[Sequence[Sentence]]:
        """Group by limit, of which a batch has one; greedy outputs can be cut afterwards."""
        if settings.early_stopping == "never":
            raise UsageError(
                "`early_stopping` must be left out with fairseq2, which stops by a rule of its own, but is never."
            )
        if settings.beams == 1:
            return [sentences]
        groups: dict[int, list[Sentence]] = {}
        for sentence in sentences:
            groups.setdefault(sentence.limit, []).append(sentence)
        return groups.values()

    def decode(self, sentences: Sequence[Sentence], settings: SearchSettings) -> list[list[Hypothesis]]:
        """Return the hypotheses of each, best first."""
        device = self._model.final_proj.weight.device
        most = self._model.max_target_seq_len - _PROMPT
        source = pad([sentence.source for sentence in sentences], _TRANSFORMERS_PAD).to(device)
        prompts = torch.tensor([[_TRANSFORMERS_EOS, sentence.language] for sentence in sentences], device=device)
        source_layout = BatchLayout.of(source, [len(sentence.source) for sentence in sentences])
        generator = BeamSearchSeq2SeqGenerator(
            self._model,
            VocabularyInfo(self._model.final_proj.weight.shape[0], _UNK, _BOS, _EOS, _PAD),
            beam_size=settings.beams,
            max_gen_len=(0, max(sentence.limit for sentence in sentences)),
            len_penalty=settings.length_penalty,
            echo_prompt=True,  # for the score of the language token
        )
        output = generator(ids_for_fairseq2(source), source_layout, ids_for_fairseq2(prompts), BatchLayout.of(prompts))
        return [
            [_hypothesis(each, min(sentence.limit, most), settings) for each in found[: settings.alternatives]]
            for sentence, found in zip(sentences, output.hypotheses, strict=True)
        ]


def _hypothesis(found: Found, limit: int, settings: SearchSettings) -> Hypothesis:
    """Return a hypothesis as ours are: the language token apart, what is beyond the limit cut off."""
    assert found.score is not None
    assert found.step_scores is not None
    words: list[int] = ids_for_transformers(found.seq[_PROMPT:]).tolist()
    steps: Tensor = found.step_scores[_PROMPT:]
    room = limit - 1  # the language token takes one
    ended = len(words) <= room
    words = words[:-1] if ended else words[:room]
    total = float(steps[: len(words) + ended].double().sum())
    score = float(found.score) if ended else total / limit**settings.length_penalty
    return Hypothesis(tuple(words), total, ended, score)
