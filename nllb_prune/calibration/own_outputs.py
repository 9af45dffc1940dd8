"""The model's own translations as targets of the teacher-forced pass: the best hypothesis of greedy or beam search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import length_limit
from nllb_prune.model.blocks import blocks_of


def own_targets(
    model: nn.Module,
    sources: Sequence[Sequence[int]],
    *,
    language: int,
    end: int,
    beams: int = 1,
    masks: Mapping[str, Tensor] | None = None,
) -> list[list[int]]:
    """Translate sentences and return the tokens of the best hypotheses.

    Args:
        model: From `load_model`.
        sources: Tokens with the source language and `</s>`.
        language: Token of the target language.
        end: Token `</s>`; a translation that was cut at its limit goes without.
        beams: 1 is greedy.
        masks: Experts that may be used, one row a stack, as `mask_rows` makes them for one direction.

    Returns:
        For each source the target language, the words and `</s>`, in order.
    """
    keep = {stack: rows[0] for stack, rows in (masks or {}).items()}
    sentences = [
        Sentence(key=n, source=source, language=language, limit=length_limit(len(source)), keep=keep)
        for n, source in enumerate(sources)
    ]
    found = decode(model, blocks_of(model), sentences, SearchSettings(beams=beams))
    best = [found[n][0] for n in range(len(sources))]
    return [[language, *each.tokens, *([end] if each.ended else [])] for each in best]
