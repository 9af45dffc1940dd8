"""The statistics that a suite plans its masks from: what is wrong with a file, and the command that makes one."""

from __future__ import annotations

import shlex

from nllb_prune.calibration.statistics import TEXT, ExpertStatistics
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.suites.records import GivenFiles, Need, Suite
from nllb_prune.languages import all_languages
from nllb_prune.model.loading import ModelFacts
from nllb_prune.model.spec import Fingerprint
from nllb_prune.planning.criteria import CRITERIA
from nllb_prune.planning.members import languages_of
from nllb_prune.worklist import named

_SCRIPT = (
    "import sys; from nllb_prune.evaluation.suites.suites import suite; print(suite(sys.argv[1]).directions_text())"
)


def statistics_need(suite: Suite, given: GivenFiles, facts: ModelFacts | None, text: ParallelText | None) -> Need:
    """Return whether the statistics that masks are planned from are there, and fit.

    Args:
        suite: the suite.
        given: what there is.
        facts: of the model, if it is here.
        text: that is translated, if it is here.
    """
    planned = f"for {len(suite.planned)} configuration{'s' * (len(suite.planned) > 1)}"
    if given.statistics is None:
        return Need("statistics", planned, f"make them: {calibrate_command(suite, given, text)}")
    try:
        statistics = ExpertStatistics.load(given.statistics)
    except UsageError as error:
        return Need("statistics", planned, str(error))
    problem = _statistics_problem(suite, statistics, text) or other_model(statistics.fingerprint, facts)
    advice = None if problem is None else f"{problem}; make others: {calibrate_command(suite, given, text)}"
    return Need("statistics", f"{given.statistics} {planned}", advice)


def _statistics_problem(suite: Suite, statistics: ExpertStatistics, text: ParallelText | None) -> str | None:
    assert suite.calibration is not None
    if absent := [code for code in suite.codes if code not in languages_of(statistics)]:
        return f"they lack {len(absent)} of {len(suite.codes)} languages ({named(absent)})"
    if suite.calibration.granularity == "pair" and statistics.granularity != "pair":
        return "they must be kept by direction (pair), but are kept by language instead"
    groups = {group for each in suite.planned.values() for group in _groups(each.settings.get("criterion"))}
    if lacking := sorted(groups - set(statistics.collect)):
        return f"they lack the groups {', '.join(lacking)}"
    if text is not None and (same := _translated_text(suite, statistics, text)):
        return f"they were made from the lines that are translated ({named(same)})"
    return None


def _translated_text(suite: Suite, statistics: ExpertStatistics, text: ParallelText) -> list[str]:
    """Return the languages whose calibration lines are the first ones of the text."""
    lines = statistics.signature.get("sentences")
    if not isinstance(lines, int):
        return []
    head = text.head(lines)
    return [code for code in suite.codes if statistics.signature.get(TEXT + code) == head.digest(code)]


def _groups(criterion: str | None) -> tuple[str, ...]:
    return CRITERIA[criterion].groups if criterion else ()


def other_model(fingerprint: Fingerprint, facts: ModelFacts | None) -> str | None:
    """Say that files are of another model than the one here; None if they are of it, or it is not here."""
    if facts is None or facts.spec.fingerprint is None or fingerprint.matches(facts.spec.fingerprint):
        return None
    return f"they are of another model (fingerprint {fingerprint.short})"


def calibrate_command(suite: Suite, given: GivenFiles, text: ParallelText | None) -> str:
    """Return the command that makes the statistics of a suite."""
    assert suite.calibration is not None
    words = ["nllb-prune", "calibrate", given.model or suite.model.default or "MODEL"]
    if given.text is not None or suite.text.kind != "mini":
        words += ["--text", given.text or "FLORES"]
    words += ["--split", suite.calibration.split]
    by_pair = suite.calibration.granularity == "pair"
    if by_pair:
        words += ["--granularity", "pair"]
    groups = sorted({group for each in suite.planned.values() for group in _groups(each.settings.get("criterion"))})
    words += ["--collect", ",".join(groups)] if groups else []
    command = shlex.join([*words, "--output", f"{suite.name}-statistics.safetensors"])
    if by_pair or not _is_whole(suite, text):
        # a list of 2,756 directions is no line to read: the shell asks the suite for it
        command += f' --directions "$(python -c {shlex.quote(_SCRIPT)} {shlex.quote(suite.source)})"'
        command += "" if by_pair else " --pairs-per-target all"
    return command


def _is_whole(suite: Suite, text: ParallelText | None) -> bool:
    """Return whether the suite takes every language of the text that NLLB-200 has, as `calibrate` does."""
    if text is None:
        return suite.text.kind == "mini" or len(suite.codes) == len(all_languages())
    return {each.code for each in all_languages()} & set(text.languages) == set(suite.codes)
