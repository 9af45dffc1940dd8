import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from nllb_prune.cli import parser
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary import Summary
from nllb_prune.report.names import groups, number
from nllb_prune.report.ordering import by_strongest_row, leaf_order, overlap_distance
from nllb_prune.report.page import main_configuration, render, write_report
from nllb_prune.report.ratios import ratio_series
from nllb_prune.report.theme import configuration_colours

SECTIONS = ("summary", "quality", "ratio", "length", "experts", "similarity", "directions", "reading")
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page is made of, and checks that its elements nest."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.text, self.tags, self._open, self._references = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html(inputs):
    return render(inputs.summary, statistics=inputs.statistics, masks=inputs.masks)


def test_the_page_needs_nothing_else(html):
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert len(html) < 3_000_000


def test_ids_are_unique_and_links_lead_somewhere(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    references = [link[1:] for link in page.links if link.startswith("#")] + re.findall(r"url\(#([^)]*)\)", html)
    assert set(references) <= set(page.ids)


def test_every_section_and_configuration_is_there(html, inputs):
    page = Page(html)
    assert set(SECTIONS) <= set(page.ids)
    for name in inputs.names:
        assert f"</i>{name}</th>" in html
    for stack in inputs.statistics.spec.stacks:
        for layer in stack.layers:
            assert f"{stack.name.capitalize()} layer {layer}: importance of 64 experts" in html
    for title in ("out of English (9 directions)", "into English (9 directions)", "by where 96 kept experts are"):
        assert title in html
    assert html.count("(Jaccard)</figcaption>") == 2
    assert "Modern Standard Arabic" in html


def test_signatures_are_shown(html, inputs):
    for found in inputs.summary.signatures.values():
        assert all(signature in html for signature in found)
    assert all(masks.signature in html for masks in inputs.masks.values())


def test_significant_rows_and_the_baseline_are_marked(html, inputs):
    rows = re.findall(r"<tr[^>]*>.*?</tr>", html[html.index('id="summary"') : html.index('id="quality"')])
    by_name = {name: row for row in rows for name in inputs.names if f"</i>{name}</th>" in row}
    assert {name for name, row in by_name.items() if 'class="mark"' in row} == set(inputs.names) - {
        "full",
        "per-language",
    }
    assert [name for name, row in by_name.items() if 'class="baseline"' in row] == ["full"]


def test_equal_input_gives_equal_bytes(tmp_path, inputs, html):
    write_report(tmp_path / "r.html", summary=inputs.summary, statistics=inputs.statistics, masks=inputs.masks)
    assert (tmp_path / "r.html").read_bytes() == html.encode()


def test_figures_follow_the_colour_scheme(html):
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    assert all("<text" in figure and "var(--ink)" in figure for figure in figures)
    assert not any(re.search(r"#[0-9a-f]{6}\b", figure) for figure in figures)
    assert html.count('<image class="light"') == html.count('<image class="dark"') == 6 + 2 + 1


def test_scores_alone_make_a_page_that_says_what_is_missing(inputs):
    html = render(inputs.summary, statistics=None, masks={})
    assert set(SECTIONS) <= set(Page(html).ids)
    assert html.count('class="missing"') == 3


def test_one_configuration_makes_a_page(inputs):
    alone = replace(inputs.summary, configurations=inputs.summary.configurations[:1])
    assert "against full</figcaption>" not in render(alone, statistics=None, masks={})


def test_directions_without_english_are_one_group(inputs):
    without = tuple(
        replace(c, directions=tuple(d for d in c.directions if "eng_Latn" not in (d.source, d.target)))
        for c in inputs.summary.configurations[:3]
    )
    summary = replace(inputs.summary, configurations=without)
    assert groups(summary) == ["all"]
    assert "Mean chrF++ in all directions (12 directions)" in render(summary, statistics=None, masks={})


def test_names_are_escaped(inputs):
    first, second = inputs.summary.configurations[:2]
    summary = Summary((second, replace(first, name="<b>$x$")), "<b>$x$", 400, inputs.summary.signatures)
    html = render(summary, statistics=None, masks={})
    assert "<b>$x$" not in html
    assert html.count("&lt;b&gt;$x$") > 5


def test_masks_of_no_configuration_are_refused(tmp_path, inputs):
    with pytest.raises(UsageError, match=r"configurations of the scores \(full, .*but are other instead"):
        write_report(tmp_path / "r.html", summary=inputs.summary, masks={"other": inputs.masks["global"]})


def test_statistics_of_another_model_are_refused(tmp_path, inputs):
    with pytest.raises(UsageError, match="`statistics` must be of the model of the masks global"):
        write_report(
            tmp_path / "r.html",
            summary=inputs.summary,
            statistics=inputs.make_statistics(norm=2.0),
            masks={"global": inputs.masks["global"]},
        )


def test_ratios_that_were_planned_alike_are_one_series(inputs):
    (series,) = ratio_series(inputs.summary, inputs.masks)
    assert [point.name for point in series] == ["ratio-1-2", "ratio-1-1", "ratio-2-1", "per-language"]
    assert [point.ratio for point in series] == ["1:2", "1:1", "2:1", "3:1"]
    assert [(point.encoder, point.decoder) for point in series][-1] == ("24", "8")
    assert series[-1].share == 0.75


def test_the_report_is_about_masks_per_language(inputs):
    masks = dict(sorted(inputs.masks.items()))
    assert next(iter(masks)) == "frequency"
    assert main_configuration(inputs.summary, masks) == "per-language"
    assert main_configuration(inputs.summary, {}) == "per-language"


def test_configurations_have_colours_of_their_own(inputs):
    colours = configuration_colours(inputs.summary)
    assert set(colours) == set(inputs.names)
    assert len(set(colours.values())) == len(inputs.names)


def test_leaf_order_puts_clusters_side_by_side():
    places = np.array([0.0, 10.0, 0.5, 10.4, 5.0, 0.9])
    order = leaf_order(np.abs(places[:, None] - places))
    assert places[order].tolist() in (sorted(places), sorted(places, reverse=True))
    assert leaf_order(np.zeros((0, 0))) == []


def test_overlap_distance_is_of_shares():
    rows = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert overlap_distance(rows) == pytest.approx(np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]]))


def test_columns_are_grouped_by_their_strongest_row():
    values = np.array([[0.1, 0.9, 1.0, 0.0], [1.0, 0.2, 0.1, 0.3]])
    assert by_strongest_row(values).tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize(("value", "text"), [(-0.04, "+0.0"), (-1.26, "−1.3"), (2, "+2.0")])
def test_numbers_have_a_true_minus(value, text):
    assert number(value, 1, sign=True) == text


def test_the_verb_writes_the_page(tmp_path, capsys, inputs):
    inputs.summary.save(tmp_path / "scores" / "summary.json")
    inputs.statistics.save(tmp_path / "statistics.safetensors")
    inputs.masks["per-language"].save(tmp_path / "per-language.json")
    inputs.masks["ratio-1-1"].save(tmp_path / "other.json")
    arguments = ["report", "--scores", tmp_path / "scores" / "summary.json", "--output", tmp_path / "r.html"]
    arguments += ["--statistics", tmp_path / "statistics.safetensors"]
    arguments += ["--masks", tmp_path / "per-language.json", "--masks", f"ratio-1-1={tmp_path / 'other.json'}"]
    options = parser().parse_args([str(each) for each in arguments])
    options.run(options)
    assert "Expert pruning of mini" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "r.html" in capsys.readouterr().out
