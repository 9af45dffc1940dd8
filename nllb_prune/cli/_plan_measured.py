"""Planning by a measure of the model on held-out text: the guard, the ratio, the layers."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import open_text, positive, progress_bar
from nllb_prune.cli._plan_model import check_model, load_checked
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.corpus import ParallelText
    from nllb_prune.languages import Direction
    from nllb_prune.masks import MaskSet
    from nllb_prune.planning.measured import Decisions

SEARCHES = ("auto", "auto-per-language")
SENTENCES, PARTNERS = 32, 6

_SHORT = (
    "Masks were measured on a text of {lines} lines, fewer than the {count} that the statistics are of: make sure that "
    "they are others."
)


def add_measured(group: argparse._ArgumentGroup) -> None:
    """Add the options."""
    group.add_argument("--guard", action="store_true", help="measure masks and let those over tolerance grow")
    group.add_argument(
        "--tolerances", metavar="T", help="as in loss_change=0.1,length_change=0.05; the others keep their defaults"
    )
    group.add_argument(
        "--reserve", metavar="R", help="what a direction may get beyond the budget: 24, 25%%, 2GB (default: 25%%)"
    )
    group.add_argument("--layers", choices=SEARCHES, help="share experts among layers by what they save")
    group.add_argument(
        "--measured-sentences",
        type=positive,
        default=SENTENCES,
        metavar="N",
        help=f"of each direction, teacher-forced and for the guard translated too (default: {SENTENCES})",
    )
    group.add_argument(
        "--measured-sources",
        type=positive,
        default=PARTNERS,
        metavar="N",
        help=f"of each target, at most, taken round a ring (default: {PARTNERS})",
    )


def measured_arguments(options: argparse.Namespace) -> dict[str, bool]:
    """Return the arguments that need a measure, and whether they were given."""
    return {
        "--guard": options.guard,
        "--ratio": options.ratio in SEARCHES,
        "--layers": options.layers is not None,
    }


def decisions_of(options: argparse.Namespace) -> Decisions:
    """Return what is left to the measure."""
    from nllb_prune.planning.measured import Decisions, parse_reserve, parse_tolerances

    if not options.guard and (options.tolerances is not None or options.reserve is not None):
        name = "tolerances" if options.tolerances is not None else "reserve"
        raise UsageError(f"`--{name}` must be given with `--guard`, but is given without it.")
    decisions = Decisions(
        ratio=options.ratio if options.ratio in SEARCHES else None, layers=options.layers, guard=options.guard
    )
    if options.tolerances is not None:
        decisions = replace(decisions, tolerances=parse_tolerances(options.tolerances))
    if options.reserve is not None:
        decisions = replace(decisions, reserve=parse_reserve(options.reserve))
    return decisions


def plan_on_model(
    options: argparse.Namespace, statistics: ExpertStatistics, asked: dict[str, Any], decisions: Decisions
) -> MaskSet:
    """Plan with what the model says of the masks."""
    from nllb_prune.evaluation.fidelity.held_out import HeldOut
    from nllb_prune.model.source import load_tokenizer
    from nllb_prune.planning.measured import plan_measured, prospect

    ahead = prospect(statistics, decisions=decisions, **asked)  # refuses what cannot be planned, before loading
    check_model(options, statistics)
    text, tokenizer = open_text(options), load_tokenizer(options.model)
    directions = _directions(ahead.masks, text, tokenizer, most=options.measured_sources)
    sentences = options.measured_sentences
    skipped, note = _skipped(statistics, text, directions, sentences)
    low, high = ahead.measures
    _say(f"{len(directions)} directions x {sentences} sentences to measure on, about {low} to {high} times")
    run = partial(
        HeldOut.of,
        load_checked(options, statistics),
        tokenizer,
        text,
        sentences=sentences,
        decoded=sentences if decisions.guard else 0,
        skipped=skipped,
    )
    each = len(directions) * _seconds(lambda: run(directions[:1]))
    _say(f"the full model takes about {_time(each)}, all measures {_time(low * each / 2)} to {_time(high * each)}")
    measure = run(directions, progress=progress_bar("full model"))
    masks = plan_measured(statistics, measure, decisions=decisions, told=_tell, **asked)
    return masks if note is None else _noted(masks, note)


def _seconds(run: Callable[[], object]) -> float:
    """Return what a run takes, after one to warm up."""
    run()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _directions(masks: MaskSet, text: ParallelText, tokenizer: Any, *, most: int) -> tuple[Direction, ...]:
    """Return the directions to measure: so many sources of each target, of those that have masks and text."""
    from nllb_prune.calibration.pairing import ring
    from nllb_prune.languages import parse_directions
    from nllb_prune.tokenization import known_languages

    known = known_languages(tokenizer)
    spoken = [code for code in text.languages if code in known]
    both = parse_directions("all", spoken) if len(spoken) > 1 else ()
    possible = [each for each in both if masks.covers(*each)]
    if not possible:
        planned = ", ".join(masks.languages()) or "all"
        raise UsageError(
            f"`--text` must have two languages to measure the masks of ({planned}) on, but has "
            f"{', '.join(spoken) or 'none'}."
        )
    return tuple((source, target) for target, sources in ring(possible, most).items() for source in sources)


def _skipped(
    statistics: ExpertStatistics, text: ParallelText, directions: tuple[Direction, ...], sentences: int
) -> tuple[int, str | None]:
    """Return how many lines at the start made the statistics, and what to say if they must be measured on too."""
    used = _used_lines(statistics, text, directions)
    lines = len(text.lines(directions[0][0]))
    if lines < sentences:
        raise UsageError(
            f"`--measured-sentences` must be 1 to {lines}, the lines of the text, but is {sentences} instead."
        )
    if lines - used >= sentences:
        count = statistics.signature.get("sentences", 0)
        short = not used and isinstance(count, int) and lines < count
        return used, _SHORT.format(lines=lines, count=count) if short else None
    return 0, (
        f"Masks were measured on lines that the statistics are of too, as {lines - used} others are left: calibrate on "
        "fewer (`--sentences`), or give other text to hold some out."
    )


def _used_lines(statistics: ExpertStatistics, text: ParallelText, directions: tuple[Direction, ...]) -> int:
    """Return how many lines of a text made the statistics; none if they were made from another."""
    from nllb_prune.calibration.statistics import TEXT

    count = statistics.signature.get("sentences", 0)
    if not isinstance(count, int) or not 1 <= count <= len(text.lines(directions[0][0])):
        return 0
    head = text.head(count)
    codes = {code for each in directions for code in each}
    if not any(statistics.signature.get(TEXT + code) == head.digest(code) for code in codes):
        return 0
    spread = statistics.signature.get("pairs_per_target", count)
    return spread if isinstance(spread, int) else count


def _noted(masks: MaskSet, note: str) -> MaskSet:
    return replace(masks, plan={**masks.plan, "notes": [*masks.plan.get("notes", ()), note]})


def _tell(stage: str, directions: int) -> None:
    if sys.stderr.isatty():
        _say(f"measuring: {stage}, {directions} directions")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
