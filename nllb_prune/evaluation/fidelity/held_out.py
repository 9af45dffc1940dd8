"""`HeldOut`: measures masks on text that they were not made from; what planning takes to judge them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import DETACHED, Outputs
from nllb_prune.evaluation.detectors.detached import Detached
from nllb_prune.evaluation.detectors.thresholds import THRESHOLDS
from nllb_prune.evaluation.fidelity.full_model import FullDirection
from nllb_prune.evaluation.scores.writing import visible
from nllb_prune.generation.translate import translations
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.worklist import Progress

RUNAWAY = 2
"""Times as long as the other model's translation."""
LOSSES = ("loss_change", "end_loss_change", "early_change", "late_change")

Lines = tuple[list[str], list[str]]
"""Sentences of the source and their references."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The full model on held-out lines of some directions, teacher-forced on all of them, decoded on some."""

    model: Any
    tokenizer: Any
    full: Mapping[Direction, FullDirection]
    decoded: Mapping[Direction, Decoded]
    """The full model's translations."""
    signature: Mapping[str, Any]
    """How many sentences of each direction, from which lines of which text."""

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        text: ParallelText,
        directions: Sequence[Direction],
        *,
        sentences: int,
        decoded: int,
        skipped: int = 0,
        progress: Progress | None = None,
    ) -> HeldOut:
        """Run the full model.

        Each direction has lines of its own, spread over the text, so that a language is measured on as many different
        ones as there are: sentences that go wrong go wrong from most sources.

        Args:
            model: With all its experts and no masks set.
            tokenizer: Its tokenizer.
            text: Aligned lines.
            directions: To measure.
            sentences: Of each direction, teacher-forced.
            decoded: Of them, translated.
            skipped: Lines at the start of the text that are not used.
            progress: Wraps the loop over directions.

        Raises:
            UsageError: if the text has too few lines, or the model is pruned or masked.
        """
        lines = len(text.lines(directions[0][0])) - skipped
        if not 1 <= sentences <= lines or not 0 <= decoded <= sentences:
            raise UsageError(
                f"`sentences` must be 1 to {lines}, the lines that are held out, and `decoded` at most that, but are "
                f"{sentences} and {decoded} instead."
            )
        full, translated = {}, {}
        for number, direction in enumerate((progress or _plain)(directions)):
            chosen = spread_lines(lines, sentences, turn=number, turns=len(directions), first=skipped)
            sources, references = ([text.lines(code)[n] for n in chosen] for code in direction)
            source, target = direction
            full[direction] = FullDirection.of(model, tokenizer, sources, references, source=source, target=target)
            step = max(1, sentences // decoded) if decoded else sentences
            picked = [side[::step][:decoded] for side in (sources, references)]
            outputs = _translated(model, tokenizer, picked[0], direction, None)
            translated[direction] = Decoded(direction, picked[0], picked[1], outputs)
        signature = {
            "directions": len(directions),
            "sentences": sentences,
            "decoded": decoded,
            "skipped": skipped,
            "lines": lines,
            "text": {code: text.digest(code) for code in sorted({code for each in directions for code in each})},
        }
        return cls(model, tokenizer, full, translated, signature)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Those that were run."""
        return tuple(self.full)

    def losses(self, masks: MaskSet, directions: Sequence[Direction]) -> dict[Direction, dict[str, float]]:
        """Return the change of the losses of each direction."""
        found = {}
        for direction in directions:
            fidelity = self.full[direction].measure(masks)
            found[direction] = {name: fidelity.value(name) for name in LOSSES}
        return found

    def translations(self, masks: MaskSet, directions: Sequence[Direction]) -> dict[Direction, dict[str, float]]:
        """Return how translations change, nothing where none were made."""
        found = {}
        for direction in directions:
            decoded = self.decoded[direction]
            found[direction] = decoded.figures(
                _translated(self.model, self.tokenizer, decoded.sources, direction, masks)
            )
        return found


@dataclass(frozen=True, slots=True)
class Decoded:
    """Sentences of a direction with the full model's translations."""

    direction: Direction
    sources: list[str]
    references: list[str]
    outputs: list[str]

    def figures(self, outputs: Sequence[str]) -> dict[str, float]:
        """Return how other translations differ: in length, and the shares that run away or are detached."""
        detached = self._detached(outputs) / len(outputs) if outputs else float("nan")
        return {**length_figures(self.outputs, outputs), "detached_change": detached}

    def _detached(self, outputs: Sequence[str]) -> int:
        """Return how many are far from the reference and from the full model's; what is equal to that is not."""
        changed = [n for n, pair in enumerate(zip(self.outputs, outputs, strict=True)) if pair[0] != pair[1]]
        if not changed:
            return 0
        sides = ([side[n] for n in changed] for side in (self.sources, outputs, self.references, self.outputs))
        sources, found, references, full = sides
        values = Detached().values(
            Outputs(
                source=self.direction[0],
                target=self.direction[1],
                sources=sources,
                outputs=found,
                references=references,
                full_outputs=full,
            )
        )
        return int((values >= THRESHOLDS[DETACHED]).sum())


def spread_lines(lines: int, count: int, *, turn: int, turns: int, first: int = 0) -> list[int]:
    """Return the numbers of so many lines, evenly spaced, from another start each turn."""
    start = turn * lines / (turns * count)
    return [first + int(start + n * lines / count) % lines for n in range(count)]


def length_figures(before: Sequence[str], after: Sequence[str]) -> dict[str, float]:
    """Return how lengths change, white space left out: of all translations, and the share of those that run away."""
    lengths = [(len(visible(old)), len(visible(new))) for old, new in zip(before, after, strict=True)]
    old, new = (sum(side) for side in zip(*lengths, strict=True)) if lengths else (0, 0)
    longer = sum(b > RUNAWAY * a for a, b in lengths) - sum(a > RUNAWAY * b for a, b in lengths)
    return {
        "length_change": new / old - 1 if old else float("nan"),
        "runaway_change": longer / len(lengths) if lengths else float("nan"),
    }


def _translated(
    model: Any, tokenizer: Any, sources: Sequence[str], direction: Direction, masks: MaskSet | None
) -> list[str]:
    source, target = direction
    found = translations(model, tokenizer, sources, source=source, target=target, masks=masks)
    return [best[0].text for best in found]


def _plain(items: Iterable[Any]) -> Iterable[Any]:
    return items
