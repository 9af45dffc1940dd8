"""What figures say, read back from their SVG."""

import re
from dataclasses import replace

import numpy as np
import pytest

from nllb_prune.report.matrix import draw_matrix, label_step
from nllb_prune.report.plots_directions import change_plot, metrics_plot
from nllb_prune.report.plots_outputs import detector_plots, fidelity_plots
from nllb_prune.report.theme import SEQUENTIAL, configuration_colours


def texts(plot):
    return re.findall(r"<text[^>]*>(.*?)</text>", plot.svg, flags=re.DOTALL)


def markers(plot):
    return plot.svg.count("<use")


def test_the_matrix_prints_the_change_of_each_direction(inputs):
    configuration = inputs.summary["global"]
    plot = change_plot(configuration)
    printed = sorted(text for text in texts(plot) if re.fullmatch(r"[+−]\d+\.\d", text))
    changes = [f"{d.changes['chrf'].value:+z.1f}".replace("-", "−") for d in configuration.directions]
    assert printed == sorted(changes)
    assert plot.cells["rows"][0] == plot.cells["columns"][0] == "eng_Latn"
    assert plot.cells["configuration"] == "global"
    assert "Empty cells" in plot.note


def test_where_there_is_no_matrix_there_is_no_figure(inputs):
    few = inputs.make_summary([("eng_Latn", "deu_Latn"), ("deu_Latn", "eng_Latn")], {"full": (0, 0), "global": (-1, 0)})
    assert change_plot(few["global"]) is None
    assert change_plot(inputs.summary["full"]) is None


def test_the_cells_are_where_the_page_looks_for_them():
    rows, columns = ["a", "b"], ["a", "b", "a label that is long"]
    values = np.arange(6.0).reshape(2, 3)
    drawn = draw_matrix(values, rows, columns, name="m", ramps=SEQUENTIAL, ends=(0, 8), text=str)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn.svg).groups())
    left, top, across, down = drawn.box
    scale = re.search(r'<image[^>]*width="3" height="2" transform="matrix\(([^)]*)\)"', drawn.svg)[1]
    cell_width, _, _, cell_height, x, y = map(float, scale.split())
    assert (x / width, 3 * cell_width / width) == pytest.approx((left, across), abs=1e-4)
    assert (y / height, 2 * cell_height / height) == pytest.approx((top, down), abs=1e-4)


@pytest.mark.parametrize(("room", "size", "step"), [(40, 12, 1), (13, 12, 1), (12, 12, 2), (4.2, 10, 3)])
def test_labels_never_touch(room, size, step):
    assert label_step(room, size) == step
    assert step * room >= size + 1


def test_each_direction_is_a_dot_and_into_english_stands_out(inputs):
    plot = metrics_plot(inputs.summary["per-language"], "bleu")
    assert markers(plot) >= 30
    assert [words for words, _ in plot.keys] == ["into English (9)", "other directions (21)"]
    assert len({colour for _, colour in plot.keys}) == 2
    assert metrics_plot(inputs.summary["full"], "bleu") is None
    assert metrics_plot(inputs.summary["global"], "spbleu") is None


def test_rates_stand_with_their_difference_and_its_mark(inputs):
    summary = inputs.summary
    plot, into = detector_plots(summary, configuration_colours(summary), summary["random"])
    assert "into English (9 directions)" in into.title
    figure = summary["random"].figure("repetition").change
    assert f"{100 * figure.value:+.1f}\u2009*" in texts(plot)
    assert "+0.0" in texts(plot)  # empty outputs, as many as before: not marked
    assert [words for words, _ in plot.keys] == ["full", "random"]


def test_without_detectors_there_are_no_rates(inputs):
    groups = [
        tuple(replace(g, figures={"chrf": g.figures["chrf"]}) for g in c.groups) for c in inputs.summary.configurations
    ]
    bare = tuple(replace(c, groups=g) for c, g in zip(inputs.summary.configurations, groups, strict=True))
    summary = replace(inputs.summary, configurations=bare)
    assert detector_plots(summary, configuration_colours(summary), summary["random"]) == []


def test_fidelity_that_could_not_be_measured_is_left_out(inputs):
    configurations = [
        replace(c, fidelity=None if c.fidelity is None else {**c.fidelity, "end_loss_change": float("nan")})
        for c in inputs.summary.configurations
    ]
    summary = replace(inputs.summary, configurations=tuple(configurations))
    titles = [plot.title for plot in fidelity_plots(summary, configuration_colours(summary))]
    assert len(titles) == 5
    assert not any("loss of the end" in title for title in titles)
