"""Greedy translations token by token: whole models, masks, and pruned checkpoints, with both libraries' modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.fairseq2.common import END, NEAR, forced, sentences_of
from eval.fairseq2.models import Compared, compared_models
from nllb_prune.generation.decode import decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import load_tokenizer
from nllb_prune.on_fairseq2 import loading


def study(work: Path, *, sentences: int) -> list[dict[str, Any]]:
    """Compare each model's translations, so many of each direction."""
    return [_compared(each, sentences) for each in compared_models(work)]


def _compared(compared: Compared, count: int) -> dict[str, Any]:
    ours, theirs, masks = load_model(compared.model), loading.load_model(compared.model), compared.masks
    sentences = sentences_of(load_tokenizer(compared.model), compared.directions, compared.count(count), masks)
    told: dict[str, Any] = {
        "model": compared.name,
        "directions": len(compared.directions),
        "sentences": len(sentences),
    }
    found = decode(ours, blocks_of(ours), sentences, SearchSettings())
    other = decode(theirs, None, sentences, SearchSettings())
    pairs = [(each, found[each.key][0], other[each.key][0]) for each in sentences]
    different = [pair for pair in pairs if pair[1].tokens != pair[2].tokens or pair[1].ended != pair[2].ended]
    margins = [_margin(ours, *pair, masks=masks) for pair in different]
    same = [(one, two) for _, one, two in pairs if one.tokens == two.tokens and one.ended == two.ended]
    return told | {
        "same": len(same),
        "near ties": sum(margin < NEAR for margin in margins),
        "largest margin": max(margins, default=0.0),
        "cut": sum(not two.ended for _, _, two in pairs),
        "log-probability": max(abs(one.log_probability - two.log_probability) for one, two in same),
    }


def _margin(model: Any, sentence: Sentence, ours: Hypothesis, theirs: Hypothesis, *, masks: MaskSet | None) -> float:
    """Return how far the first two tokens that differ lie apart, given what is before them."""
    mine, other = ((*each.tokens, END) if each.ended else each.tokens for each in (ours, theirs))
    first = next(n for n, pair in enumerate(zip(mine, other, strict=False)) if pair[0] != pair[1])
    starts = [(sentence, Hypothesis(tokens[: first + 1], 0.0, False, 0.0)) for tokens in (mine, other)]
    one, two = (float(values[-1]) for values in forced(model, starts, masks))
    return abs(one - two)
