"""The sections of the page that hold figures, in the order to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.report.canvas import Plot
from nllb_prune.report.guard_page import GuardPage, guard_pages
from nllb_prune.report.names import metric_name, second_metric
from nllb_prune.report.plots_directions import change_plot, metrics_plot
from nllb_prune.report.plots_experts import importance_plots, similarity_plot
from nllb_prune.report.plots_layer_search import layer_search_plots
from nllb_prune.report.plots_outputs import detector_plots, fidelity_plots, length_plots
from nllb_prune.report.plots_quality import budget_plots, quality_plots, ratio_plots
from nllb_prune.report.plots_ratio_search import ratio_search_plots
from nllb_prune.report.rows import Colours

_MORE = 8  # configurations beside the main one whose figures are drawn


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a page is made of."""

    summary: Summary
    statistics: ExpertStatistics | None
    masks: Mapping[str, MaskSet]
    colours: Colours
    main: str | None

    @property
    def compared(self) -> list[ConfigurationSummary]:
        """The configurations with figures of their own, the main one first."""
        found = [c for c in self.summary.configurations if c.figure("chrf").change is not None]
        return sorted(found, key=lambda c: c.name != self.main)[: _MORE + 1]

    @property
    def ordered_masks(self) -> dict[str, MaskSet]:
        """The masks by configuration, in the order of the summary, those of the main one first."""
        names = [c.name for c in self.summary.configurations if c.name in self.masks]
        return {name: self.masks[name] for name in sorted(names, key=lambda name: name != self.main)}


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its figures."""

    id: str
    title: str
    about: str
    """What to look for, one or two sentences."""
    plots: Sequence[Plot] = ()
    more: Sequence[Plot] = ()
    """Of the other configurations, to unfold."""
    missing: str = ""
    """What to give to see figures, shown when there are none."""
    guards: Sequence[GuardPage] = ()


def sections(inputs: Inputs) -> list[Section]:
    """Return the sections, without those that nothing asked for."""
    found = [
        _quality(inputs), _metrics(inputs), _budget(inputs), _ratio(inputs), _ratio_search(inputs),
        _layer_search(inputs), _guard(inputs), _length(inputs), _detectors(inputs), _fidelity(inputs), _experts(inputs),
        _similarity(inputs),
    ]  # fmt: skip
    return [section for section in found if section.plots or section.missing or section.guards]


def change_plots(inputs: Inputs) -> list[Plot]:
    """Return the matrices of directions, that of the main configuration first."""
    return [plot for c in inputs.compared if (plot := change_plot(c)) is not None]


def _quality(inputs: Inputs) -> Section:
    about = f"What each configuration reaches, and what it loses against {inputs.summary.baseline}."
    return Section("quality", "Quality by configuration", about, quality_plots(inputs.summary, inputs.colours))


def _metrics(inputs: Inputs) -> Section:
    second = second_metric(inputs.summary)
    plots = [plot for c in inputs.compared if second and (plot := metrics_plot(c, second)) is not None]
    about = (
        f"A dot is a direction. chrF++ weighs recall, so it hardly sees a model that writes too much; "
        f"{metric_name(second or 'bleu')} does. Dots far below the diagonal are directions to look at."
    )
    return Section("metrics", "Do two metrics agree", about, plots[:2], plots[2:])


def _budget(inputs: Inputs) -> Section:
    return Section(
        "budget",
        "Quality by budget",
        "Configurations that were planned alike and keep different shares of the experts.",
        budget_plots(inputs.summary, inputs.masks),
        missing="Evaluate two or more budgets of the same granularity, criterion and ratio to see it.",
    )


def _ratio(inputs: Inputs) -> Section:
    return Section(
        "ratio",
        "Encoder or decoder",
        "The same number of experts, shared differently between encoder and decoder.",
        ratio_plots(inputs.summary, inputs.masks, inputs.colours),
        missing="Evaluate two or more configurations with equal budgets and different ratios to see it.",
    )


def _ratio_search(inputs: Inputs) -> Section:
    each = [plots for name, masks in inputs.ordered_masks.items() if (plots := ratio_search_plots(name, masks))]
    return Section(
        "ratio-search",
        "How the ratio was found",
        "One budget, shared differently between encoder and decoder and measured on held-out text. Token loss is "
        "teacher-forced, against the full model. Below the figures, experts of a mask.",
        each[0] if each else (),
        [plot for plots in each[1:] for plot in plots],
    )


def _layer_search(inputs: Inputs) -> Section:
    each = [plots for name, masks in inputs.ordered_masks.items() if (plots := layer_search_plots(name, masks))]
    return Section(
        "layer-search",
        "How the layers were found",
        "Each layer in turn had half of its experts more and half fewer, measured on held-out text. Experts went where "
        "one more saves most token loss. A guard may have added experts since.",
        each[0] if each else (),
        [plot for plots in each[1:] for plot in plots],
    )


def _guard(inputs: Inputs) -> Section:
    return Section(
        "guard",
        "Guard",
        "Masks were measured on held-out text before they were accepted. Those over a tolerance got experts from a "
        "reserve, step by step, until they passed or it was used up.",
        guards=guard_pages(inputs.ordered_masks),
    )


def _length(inputs: Inputs) -> Section:
    return Section(
        "length",
        "Length and repetition",
        "A model that lost the experts that end a sentence goes on: outputs get longer than the references and "
        "repeat themselves, which chrF++ hardly shows. Dots are means over directions, thick lines the middle "
        "half of them, thin lines all.",
        length_plots(inputs.summary, inputs.colours),
    )


def _detectors(inputs: Inputs) -> Section:
    each = [detector_plots(inputs.summary, inputs.colours, c) for c in inputs.compared]
    return Section(
        "hallucination",
        "Hallucination",
        f"How many outputs each detector flags, before and after pruning. Look at the difference: "
        f"{inputs.summary.baseline} is flagged now and then as well.",
        each[0] if each else (),
        [plot for plots in each[1:] for plot in plots],
    )


def _fidelity(inputs: Inputs) -> Section:
    about = "Teacher-forced on the references: how far the next-token distributions move from the full model's."
    return Section("fidelity", "Fidelity to the full model", about, fidelity_plots(inputs.summary, inputs.colours))


def _experts(inputs: Inputs) -> Section:
    return Section(
        "experts",
        "Which experts a language uses",
        "Rows are source languages in the encoder and target languages in the decoder, alike ones side by side. "
        "Columns are the experts of one layer, grouped by the language that uses them most: steps are experts of "
        "one language, columns that are strong from top to bottom serve all. Layers count from 0.",
        _importance(inputs.statistics),
        missing="Give `--statistics` to see it.",
    )


def _similarity(inputs: Inputs) -> Section:
    return Section(
        "similarity",
        "How much languages share",
        "Kept experts that two languages have in common, over those that either keeps.",
        _shared(inputs.masks, inputs.main),
        missing="Give `--masks` planned per language, for three languages or more, to see it.",
    )


def _importance(statistics: ExpertStatistics | None) -> list[Plot]:
    """Return the figures of each stack: side by side if stacks have equally many layers, else one after the other."""
    if statistics is None:
        return []
    stacks = [importance_plots(statistics, stack) for stack in statistics.spec.stacks]
    alike = len({len(plots) for plots in stacks}) == 1
    return [plot for plots in (zip(*stacks, strict=True) if alike else stacks) for plot in plots]


def _shared(masks: Mapping[str, MaskSet], main: str | None) -> list[Plot]:
    per_language = [
        masks[name] for name in [main or "", *masks] if name in masks and masks[name].granularity == "language"
    ]
    if not per_language:
        return []
    stacks: tuple[Stack, ...] = per_language[0].stacks[::-1]  # the decoder, where languages differ most, first
    return [plot for stack in stacks if (plot := similarity_plot(per_language[0], stack)) is not None]
