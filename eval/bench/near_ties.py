"""How near a tie the decisions behind a greedy translation come: rounding can turn those that are near enough.

Rows of another batch are summed in another order, so float32 values differ in their last bits. That changes a
translation only where two tokens of the vocabulary, or two experts of a router, are as good as equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nllb_prune.generation.loop import DecodingLoop, Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import length_limit
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.routing import RoutedTokens, mask_rows, routing
from nllb_prune.tokenization import encode, language_id

NEAR = 1e-4
"""Difference of log-probabilities below which rounding in float32 may decide."""


class _Margins:
    """An observer of routers that remembers the least difference between the last expert chosen and the next."""

    wants_outputs = False

    def __init__(self) -> None:
        self.least = float("inf")

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Compare the experts of a call."""
        self.see(routed.probabilities.double().log(), routed.chosen.shape[1])

    def see(self, scores: Tensor, chosen: int) -> None:
        """Compare scores ``(..., choices)`` of which so many are chosen."""
        best = scores.topk(chosen + 1, dim=-1).values
        gaps = best[..., :chosen] - best[..., 1:]
        if gaps.numel():
            self.least = min(self.least, float(gaps.nan_to_num(float("inf")).min()))


class _Watched:
    """Blocks whose logits are looked at."""

    def __init__(self, blocks: Any, margins: _Margins) -> None:
        self._blocks, self._margins = blocks, margins

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blocks, name)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits."""
        found: Tensor = self._blocks.logits(states)
        self._margins.see(found.double(), 1)
        return found


def margin_of(model: nn.Module, tokenizer: Any, request: tuple[str, str, str], masks: MaskSet) -> float:
    """Return the `smallest_margin` of a (text, source, target) within masks."""
    text, source, target = request
    [ids] = encode(tokenizer, [text], source)
    keep = {stack: rows[0] for stack, rows in mask_rows(masks, [(source, target)]).items()}
    token = language_id(tokenizer, target)
    return smallest_margin(model, source=ids, language=token, limit=length_limit(len(ids)), keep=keep)


def smallest_margin(
    model: nn.Module, *, source: list[int], language: int, limit: int, keep: Mapping[str, Tensor]
) -> float:
    """Return the least difference between what was chosen and what came next, while a sentence is translated alone.

    Args:
        model: From `load_model`.
        source: Tokens of the sentence.
        language: Token of the target language.
        limit: Tokens to generate at most.
        keep: Experts it may use, as in `Sentence`.
    """
    margins, blocks = _Margins(), blocks_of(model)
    loop = DecodingLoop(_Watched(blocks, margins), SearchSettings(), device=next(model.parameters()).device)  # type: ignore[arg-type]
    with routing(model, observer=margins):  # type: ignore[arg-type]
        loop.add([Sentence(key=0, source=source, language=language, limit=limit, keep=keep)])
        while len(loop):
            loop.step()
    return margins.least
