"""Translate texts: tokens, search, text; rows of any languages in one batch, each within its own experts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.generation.decode import POSITIONS, ROWS, decode
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.routing import check_rows, mask_rows, routing_of, warn_unplanned
from nllb_prune.tokenization import MAX_LENGTH, encode, language_id

GREEDY = SearchSettings()


@dataclass(frozen=True, slots=True)
class Translation:
    """A translation of a text, and how sure the model is of it."""

    text: str
    log_probability: float
    """Of the whole translation, natural logarithm."""
    mean_log_probability: float
    """Mean over the tokens, `</s>` counted."""
    score: float
    """What the search compared: log-probability / length ** length penalty."""
    ended: bool
    """Whether the model came to an end; otherwise the translation was cut at its limit."""


def length_limit(source_length: int) -> int:
    """Return how many tokens may be generated for a source of so many: room enough for over-generation to show."""
    return 2 * source_length + 16


def translate(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    source: str | Sequence[str],
    target: str | Sequence[str],
    masks: MaskSet | None = None,
    beams: int = 1,
) -> list[str]:
    """Translate texts, in their order; a text without a word comes back unchanged. See `translations` for more."""
    search = SearchSettings(beams=beams)
    found = translations(model, tokenizer, texts, source=source, target=target, masks=masks, search=search)
    return [best[0].text for best in found]


def translations(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    source: str | Sequence[str],
    target: str | Sequence[str],
    masks: MaskSet | None = None,
    search: SearchSettings = GREEDY,
    rows: int = ROWS,
    positions: int = POSITIONS,
) -> list[list[Translation]]:
    """Translate texts and return, for each in order, as many translations as `search` asks for, best first.

    Texts of different languages share batches, and which texts share one changes no result (but for ties within the
    rounding of float32). Texts beyond 512 tokens are cut there, with a warning.

    Args:
        model: From `load_model`.
        tokenizer: Its tokenizer.
        texts: Sentences; one without a word comes back unchanged.
        source: Language of the texts, or of each.
        target: Language to translate into, or of each.
        masks: Uses the experts of each text's direction for this call alone; otherwise what is set on the model.
        search: Greedy or beam search, alternatives, length penalty.
        rows: Sentences in flight at most.
        positions: Source positions in flight times beams, at most.

    Raises:
        UsageError: on a language that the model or the masks lack, masks of another model, or memory that runs out.
    """
    directions = text_directions(len(texts), source, target)
    keep = _masks_by_direction(model, masks, directions)
    worded = [n for n, text in enumerate(texts) if text.strip()]
    found = [[Translation(text, 0.0, 0.0, 0.0, True)] * search.alternatives for text in texts]
    sentences = []
    for direction in sorted({directions[n] for n in worded} or set(directions)):
        here = [n for n in worded if directions[n] == direction]
        target_id = language_id(tokenizer, direction[1])
        warn_unplanned(routing_of(model), *direction)
        for n, ids in zip(here, encode(tokenizer, [texts[n] for n in here], direction[0]), strict=True):
            limit = length_limit(len(ids))
            sentences.append(Sentence(key=n, source=ids, language=target_id, limit=limit, keep=keep[direction]))
    _warn_of_cut(sentences)
    hypotheses = decode(model, blocks_of(model), sentences, search, rows=rows, positions=positions)
    for n in worded:
        each = hypotheses[n]
        decoded = tokenizer.batch_decode([h.tokens for h in each], skip_special_tokens=True)
        found[n] = [_translation(text, hypothesis) for text, hypothesis in zip(decoded, each, strict=True)]
    return found


def _translation(text: str, found: Hypothesis) -> Translation:
    return Translation(text.strip(), found.log_probability, found.mean_log_probability, found.score, found.ended)


def text_directions(count: int, source: str | Sequence[str], target: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return the direction of each text, given a language for all or one for each.

    Raises:
        UsageError: if there are not as many languages as texts.
    """
    sides = []
    for name, side in (("source", source), ("target", target)):
        codes = [side] * count if isinstance(side, str) else list(side)
        if len(codes) != count:
            raise UsageError(
                f"`{name}` must be one language, or one a text, {count}, but there are {len(codes)} instead."
            )
        sides.append(codes)
    return list(zip(*sides, strict=True))


def _masks_by_direction(
    model: nn.Module, masks: MaskSet | None, directions: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Mapping[str, Tensor]]:
    """Return the kept experts of each direction by stack ``(layers, experts)``; equal ones are one tensor."""
    state = routing_of(model)
    distinct = sorted(set(directions))
    if masks is None:
        held = {name: stack.keep[0] for name, stack in state.stacks.items() if stack.keep is not None}
        if any(stack.keep is not None and len(stack.keep) > 1 for stack in state.stacks.values()):
            raise UsageError("`masks` must be given to this call for texts of several directions, but are set by row.")
        return dict.fromkeys(distinct, held)
    masks.check_model(state.spec)
    device = next(model.parameters()).device
    seen: dict[tuple[str, bytes], Tensor] = {}
    kept: dict[tuple[str, str], Mapping[str, Tensor]] = {}
    for direction in distinct:
        tables = {}
        for name, table in mask_rows(masks, [direction], device=device).items():
            check_rows(state, name, table)
            content = table[0].cpu().numpy().tobytes()
            tables[name] = seen.setdefault((name, content), table[0])
        kept[direction] = tables
    return kept


def _warn_of_cut(sentences: Sequence[Sentence]) -> None:
    cut = sum(len(sentence.source) >= MAX_LENGTH for sentence in sentences)
    if cut:
        warnings.warn(
            f"{cut} of {len(sentences)} texts reach {MAX_LENGTH} tokens and are cut there; give one sentence a text",
            stacklevel=3,
        )
