"""Scores, statistics and masks to one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nllb_prune._files import write_text
from nllb_prune._version import __version__
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary import HEADER, Summary
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.report.canvas import Plot
from nllb_prune.report.names import key_name, number
from nllb_prune.report.plots_experts import change_plot, importance_plots, similarity_plot
from nllb_prune.report.plots_quality import length_plots, quality_plots, ratio_plots
from nllb_prune.report.tables import mask_rows, signature_rows, summary_rows, worst_directions
from nllb_prune.report.theme import configuration_colours, on_page, style_variables

_NOT_MAIN = ("random", "frequency")  # criteria that others are compared with


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its figures."""

    id: str
    title: str
    about: str
    """What to look for, one or two sentences."""
    plots: Sequence[Plot] = ()
    missing: str = ""
    """What to give to see figures, shown when there are none."""


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
    _check(summary, statistics, masks)
    write_text(path, render(summary, statistics=statistics, masks=masks))


def render(summary: Summary, *, statistics: ExpertStatistics | None, masks: Mapping[str, MaskSet]) -> str:
    """Return the HTML."""
    colours = configuration_colours(summary)
    main = main_configuration(summary, masks)
    light, dark = style_variables()
    template = files("nllb_prune.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=f"Expert pruning of {_model(statistics, masks)}",
        facts=_facts(summary),
        tiles=_tiles(summary, main),
        main=main,
        summary=summary,
        header=HEADER,
        rows=summary_rows(summary),
        colours={name: Markup(on_page(value)) for name, value in colours.items()},
        sections=_sections(summary, statistics, masks, colours, main),
        worst=worst_directions(summary, first=main),
        change=_change(summary, main),
        masks=mask_rows(masks),
        signatures=signature_rows(summary, statistics),
        light=Markup(light),
        dark=Markup(dark),
        svg=Markup,
        tool=f"nllb-prune {__version__}",
    )


def main_configuration(summary: Summary, masks: Mapping[str, MaskSet]) -> str | None:
    """Return the configuration that the report is about: the first with masks per language by a real criterion."""
    candidates = [
        name
        for name, each in masks.items()
        if each.granularity == "language" and each.plan.get("criterion") not in _NOT_MAIN and name != summary.baseline
    ]
    pruned = [c.name for c in summary.configurations if c.comparison is not None and c.mean("kept") < 1]
    return next(iter([*candidates, *pruned]), None)


def _check(summary: Summary, statistics: ExpertStatistics | None, masks: Mapping[str, MaskSet]) -> None:
    known = [c.name for c in summary.configurations]
    for name in masks:
        if name not in known:
            raise UsageError(
                f"`masks` must be named after configurations of the scores ({', '.join(known)}), but are {name} "
                "instead. Name them with NAME=FILE."
            )
    found: list[tuple[str, Fingerprint]] = [(f"masks {name}", each.fingerprint) for name, each in masks.items()]
    found += [] if statistics is None else [("statistics", statistics.fingerprint)]
    for what, fingerprint in found[1:]:
        if not fingerprint.matches(found[0][1]):
            raise UsageError(
                f"`{what}` must be of the model of the {found[0][0]} ({found[0][1].short}), "
                f"but are of {fingerprint.short} instead."
            )


def _model(statistics: ExpertStatistics | None, masks: Mapping[str, MaskSet]) -> str:
    for each in masks.values():
        return Path(each.model_name).name
    return "a translation model" if statistics is None else statistics.spec.family


def _facts(summary: Summary) -> str:
    directions = summary.configurations[0].directions
    languages = {code for d in directions for code in (d.source, d.target)}
    return (
        f"{len(summary.configurations)} configurations, each scored in {len(directions)} directions between "
        f"{len(languages)} languages, {summary.sentences:,} sentences a direction."
    )


def _tiles(summary: Summary, main: str | None) -> list[tuple[str, str]]:
    """Return the few numbers to take home about the main configuration."""
    if main is None or (comparison := summary[main].comparison) is None:
        return []
    configuration, baseline = summary[main], summary[summary.baseline]
    assert configuration.worst is not None
    direction, gain = configuration.worst
    interval = f"95 % interval {number(comparison.low, sign=True)} to {number(comparison.high, sign=True)}"
    ratios = [c.mean("length_ratio", among=c.into_english() or None) for c in (configuration, baseline)]
    into = " into English" if configuration.into_english() else ""
    return [
        (f"{configuration.mean('kept'):.1%}", "of the experts kept"),
        (number(comparison.difference, sign=True), f"mean chrF++; {interval}, p\u00a0=\u00a0{comparison.p_value:.3f}"),
        (f"{ratios[0]:.2f}", f"output / reference length{into}; {baseline.name} {ratios[1]:.2f}"),
        (number(gain, 1, sign=True), f"chrF++ in the worst direction, {key_name(direction)}"),
    ]


def _change(summary: Summary, main: str | None) -> Plot | None:
    return None if main is None else change_plot(summary[main], summary[summary.baseline])


def _sections(
    summary: Summary,
    statistics: ExpertStatistics | None,
    masks: Mapping[str, MaskSet],
    colours: Mapping[str, str],
    main: str | None,
) -> list[Section]:
    return [
        Section(
            "quality",
            "Quality by configuration",
            f"What each configuration reaches, and what it loses against {summary.baseline}.",
            quality_plots(summary, colours),
        ),
        Section(
            "ratio",
            "Encoder or decoder",
            "The same number of experts, shared differently between encoder and decoder.",
            ratio_plots(summary, masks, colours),
            missing="Give `--masks` of two or more configurations with equal budgets and different ratios to see it.",
        ),
        Section(
            "length",
            "Length and repetition",
            "A model that lost the experts that end a sentence goes on: outputs get longer than the references and "
            "repeat themselves, which chrF++ hardly shows. Dots are means over directions, thick lines the middle "
            "half of them, thin lines all.",
            length_plots(summary, colours),
        ),
        Section(
            "experts",
            "Which experts a language uses",
            "Rows are source languages in the encoder and target languages in the decoder, alike ones side by side. "
            "Columns are the experts of one layer, grouped by the language that uses them most: steps are experts of "
            "one language, columns that are strong from top to bottom serve all. Layers count from 0.",
            _importance(statistics),
            missing="Give `--statistics` to see it.",
        ),
        Section(
            "similarity",
            "How much languages share",
            "Kept experts that two languages have in common, over those that either keeps.",
            _similarity(masks, main),
            missing="Give `--masks` planned per language, for three languages or more, to see it.",
        ),
    ]


def _importance(statistics: ExpertStatistics | None) -> list[Plot]:
    """Return the figures of each stack: side by side if stacks have equally many layers, else one after the other."""
    if statistics is None:
        return []
    stacks = [importance_plots(statistics, stack) for stack in statistics.spec.stacks]
    alike = len({len(plots) for plots in stacks}) == 1
    return [plot for plots in (zip(*stacks, strict=True) if alike else stacks) for plot in plots]


def _similarity(masks: Mapping[str, MaskSet], main: str | None) -> list[Plot]:
    per_language = [
        masks[name] for name in [main or "", *masks] if name in masks and masks[name].granularity == "language"
    ]
    if not per_language:
        return []
    stacks: tuple[Stack, ...] = per_language[0].stacks[::-1]  # the decoder, where languages differ most, first
    return [plot for stack in stacks if (plot := similarity_plot(per_language[0], stack)) is not None]
