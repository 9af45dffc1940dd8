"""Scores, statistics and masks to one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from nllb_prune._files import write_text
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint
from nllb_prune.report.cards import cards, limit_rows
from nllb_prune.report.classes import CLASSES, class_tables, group_names, group_rows
from nllb_prune.report.directions import directions_data, embedded
from nllb_prune.report.examples import examples
from nllb_prune.report.main_configuration import main_configuration
from nllb_prune.report.rendering import render_template
from nllb_prune.report.sections import Inputs, change_plots, sections
from nllb_prune.report.tables import (
    mask_rows,
    search_words,
    signature_rows,
    summary_header,
    summary_rows,
    test_words,
    worst_directions,
    worst_header,
)
from nllb_prune.report.theme import configuration_colours

__all__ = ["main_configuration", "render", "write_report"]


def write_report(
    path: Path,
    *,
    summary: Summary,
    statistics: ExpertStatistics | None = None,
    masks: Mapping[str, MaskSet] | None = None,
) -> None:
    """Write the page; equal input gives equal bytes.

    Args:
        path: of the HTML file.
        summary: of the evaluation.
        statistics: of the model, for the importance of its experts.
        masks: by the name of the configuration they were scored as.

    Raises:
        UsageError: if the masks are of no configuration, or files are of different models.
    """
    masks = {} if masks is None else masks
    check_inputs(summary, statistics, masks)
    write_text(path, render(summary, statistics=statistics, masks=masks))


def render(summary: Summary, *, statistics: ExpertStatistics | None, masks: Mapping[str, MaskSet]) -> str:
    """Return the HTML."""
    main = main_configuration(summary, masks)
    inputs = Inputs(summary, statistics, masks, configuration_colours(summary), main)
    return render_template(
        "page.html.jinja",
        title=f"Expert pruning of {Path(summary.model).name}",
        facts=_facts(summary),
        main=main,
        summary=summary,
        cards=cards(summary, first=main),
        limits=limit_rows(summary),
        header=summary_header(summary),
        rows=summary_rows(summary),
        group_names=group_names(summary),
        group_rows=group_rows(summary),
        classes=CLASSES,
        class_tables=class_tables(summary, first=main),
        colours=inputs.colours,
        sections=sections(inputs),
        changes=change_plots(inputs),
        worst_header=worst_header(summary),
        worst=worst_directions(summary, first=main),
        examples=examples(summary, first=main),
        masks=mask_rows(summary, masks),
        signatures=signature_rows(summary, statistics),
        test=test_words(summary),
        data=Markup(embedded(directions_data(summary))),
        embedded=lambda value: Markup(embedded(value)),
    )


def check_inputs(summary: Summary, statistics: ExpertStatistics | None, masks: Mapping[str, MaskSet]) -> None:
    """Refuse what does not belong together.

    Raises:
        UsageError: if the masks are not those of a configuration, or files are of different models.
    """
    for name, each in masks.items():
        _check_scored(summary, name, each)
    found: list[tuple[str, Fingerprint]] = [(f"masks {name}", each.fingerprint) for name, each in masks.items()]
    found += [] if statistics is None else [("statistics", statistics.fingerprint)]
    for what, fingerprint in found[1:]:
        if not fingerprint.matches(found[0][1]):
            raise UsageError(
                f"`{what}` must be of the model of the {found[0][0]} ({found[0][1].short}), "
                f"but are of {fingerprint.short} instead."
            )


def _check_scored(summary: Summary, name: str, masks: MaskSet) -> None:
    known = [c.name for c in summary.configurations]
    if name not in known:
        raise UsageError(
            f"`masks` must be named after configurations of the scores ({', '.join(known)}), but are {name} "
            "instead. Name them with NAME=FILE."
        )
    scored = summary[name].plan.get("signature")
    if scored and scored != masks.signature:
        raise UsageError(
            f"`masks` must be those that `{name}` was scored with ({scored}), but are others ({masks.signature}) "
            "instead. Evaluate them, or name the configuration that they are of."
        )


def _facts(summary: Summary) -> str:
    directions = summary.configurations[0].directions
    languages = {code for d in directions for code in (d.source, d.target)}
    return (
        f"{len(summary.configurations)} configurations, each scored in {len(directions):,} directions between "
        f"{len(languages)} languages, {summary.sentences:,} sentences a direction, {search_words(summary)}."
    )
