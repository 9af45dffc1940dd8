"""What the parts of the study share: text, directions, sentences, and our model's word on a hypothesis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from fairseq2.assets import AssetCard
from fairseq2.models import load_model as load_their_model
from fairseq2.models.transformer import StandardMultiheadAttention
from torch import Tensor

from nllb_prune.corpus import ParallelText
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis
from nllb_prune.generation.translate import length_limit
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.routing import mask_rows, routing
from nllb_prune.model.source import embedded_text
from nllb_prune.model.teacher_forcing import forced_batch, forced_states
from nllb_prune.on_fairseq2 import loading
from nllb_prune.tokenization import encode, language_id

ASSET = "nllb-prune-mini"
END = 2
NEAR = 1e-4
"""Difference of log-probabilities below which rounding in float32 may decide."""
ROWS = 128

TEST = ParallelText.open(embedded_text(), "test")
DEV = ParallelText.open(embedded_text(), "dev")
DIRECTIONS: tuple[Direction, ...] = tuple(permutations(TEST.languages, 2))


def sentences_of(
    tokenizer: Any, directions: Sequence[Direction], count: int, masks: MaskSet | None = None
) -> list[Sentence]:
    """Return the first test lines of directions, to be decoded within the experts that masks leave them."""
    found = []
    for source, target in directions:
        rows = {} if masks is None else mask_rows(masks, [(source, target)])
        keep = {stack: table[0] for stack, table in rows.items()}
        for n, ids in enumerate(encode(tokenizer, TEST.lines(source)[:count], source)):
            language = language_id(tokenizer, target)
            found.append(
                Sentence(
                    key=(source, target, n), source=ids, language=language, limit=length_limit(len(ids)), keep=keep
                )
            )
    return found


def forced(
    model: Any, requests: Sequence[tuple[Sentence, Hypothesis]], masks: MaskSet | None = None
) -> Iterator[Tensor]:
    """Yield our model's log-probabilities of the tokens of hypotheses: the language, the words, `</s>` if it ended.

    Args:
        model: From `nllb_prune.load_model`.
        requests: Sentences, and what was found for them.
        masks: The experts that may be used.
    """
    for first in range(0, len(requests), ROWS):
        some = requests[first : first + ROWS]
        taken = [[each.language, *found.tokens, *([END] if found.ended else [])] for each, found in some]
        batch = forced_batch(model, [each.source for each, _ in some], taken)
        keep = None if masks is None else mask_rows(masks, [_direction(each) for each, _ in some])
        with torch.inference_mode(), routing(model, masks=keep):
            states = forced_states(model, batch)
            for row, tokens in zip(states, taken, strict=True):
                table = model.get_output_embeddings()(row[: len(tokens)]).double().log_softmax(-1)
                yield table[torch.arange(len(tokens)), tokens]


def _direction(sentence: Sentence) -> Direction:
    key: Any = sentence.key
    return key[0], key[1]


def fused(card: AssetCard) -> Any:
    """Return a model as fairseq2's own `load_model` makes it, with its fused attention, under the surface of ours."""
    model = load_their_model(card, device=torch.device("cpu"), dtype=torch.float32)
    attentions = {each: each.sdpa for each in model.modules() if isinstance(each, StandardMultiheadAttention)}
    found = loading.adopt(model, card)
    for each, sdpa in attentions.items():  # not that which it was given to be used here
        each.sdpa = sdpa
    return found


def texts_by_direction(tokenizer: Any, found: Mapping[Any, Hypothesis]) -> dict[Direction, list[str]]:
    """Return translations, by source, target and number of the line, as text."""
    grouped: dict[Direction, list[Hypothesis]] = {}
    for key in sorted(found):
        grouped.setdefault(key[:2], []).append(found[key])
    return {
        direction: [
            text.strip() for text in tokenizer.batch_decode([each.tokens for each in some], skip_special_tokens=True)
        ]
        for direction, some in grouped.items()
    }
