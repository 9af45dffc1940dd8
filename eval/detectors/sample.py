"""The sentences of the study: 1,000 test lines of `mini` with references, and what the full model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nllb_prune import ParallelText, load_model, load_tokenizer
from nllb_prune.evaluation.detectors import Detector, Outputs, can_run
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import translations
from nllb_prune.languages import language_set
from nllb_prune.model.source import embedded_text

CODES = language_set("mini").codes
SENTENCES = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence."""

    source: str
    target: str
    text: str
    reference: str
    output: str = ""
    log_probability: float = 0.0
    ended: bool = True


def references() -> list[Line]:
    """Return lines 0 to 999, each in one direction: targets in turn, for each target the other languages in turn."""
    text = ParallelText.open(embedded_text(), split="test")
    count = len(CODES)
    lines = []
    for n in range(SENTENCES):
        target = n % count
        source = (target + 1 + n // count % (count - 1)) % count
        pair = CODES[source], CODES[target]
        lines.append(Line(*pair, *(text.lines(code)[n] for code in pair)))
    return lines


def translated(lines: Sequence[Line], *, beams: int = 1) -> list[Line]:
    """Return the lines with the full model's outputs, greedy or of beam search."""
    found = translations(
        load_model("mini"),
        load_tokenizer("mini"),
        [line.text for line in lines],
        source=[line.source for line in lines],
        target=[line.target for line in lines],
        search=SearchSettings(beams=beams),
    )
    return [
        replace(line, output=best.text, log_probability=best.mean_log_probability, ended=best.ended)
        for line, (best,) in zip(lines, found, strict=True)
    ]


def halves(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Split: both halves have every target and every source."""
    numbered = list(enumerate(lines))
    first = [line for n, line in numbered if n // len(CODES) % 2 == 0]
    return first, [line for n, line in numbered if n // len(CODES) % 2 == 1]


def values(
    detector: Detector,
    lines: Sequence[Line],
    output: Callable[[Line], str],
    *,
    references: bool = True,
    full: bool = False,
) -> np.ndarray:
    """Return the values ``(lines,)``, direction by direction; no values if the detector cannot run."""
    found = np.full(len(lines), np.nan)
    for pair in sorted({(line.source, line.target) for line in lines}):
        here = [n for n, line in enumerate(lines) if (line.source, line.target) == pair]
        outputs = as_outputs([lines[n] for n in here], output, references=references, full=full)
        if can_run(detector, outputs):
            found[here] = detector.values(outputs)
    return found


def as_outputs(
    lines: Sequence[Line], output: Callable[[Line], str], *, references: bool, full: bool = False
) -> Outputs:
    """Return lines of one direction with some text as the output; the search is known of the model's own only."""
    texts = [output(line) for line in lines]
    own = texts == [line.output for line in lines]
    return Outputs(
        source=lines[0].source,
        target=lines[0].target,
        sources=[line.text for line in lines],
        outputs=texts,
        references=[line.reference for line in lines] if references else None,
        full_outputs=[line.output for line in lines] if full else None,
        mean_log_probabilities=np.array([line.log_probability for line in lines]) if own else None,
        ended=np.array([line.ended for line in lines]) if own else None,
    )
