import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import permutations

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.languages import all_languages
from nllb_prune.report.cards import cards
from nllb_prune.report.names import groups, number
from nllb_prune.report.page import main_configuration, render, write_report
from nllb_prune.report.theme import configuration_colours

SECTIONS = (
    "verdicts", "summary", "quality", "metrics", "budget", "ratio", "length", "hallucination", "fidelity", "experts",
    "similarity", "directions", "sentences", "reading",
)  # fmt: skip
VOID = {"meta", "br", "link", "img", "hr", "input"}
MASKED = {"per-language", "global", "random", "frequency", "ratio-1-2", "ratio-1-1", "ratio-2-1"}


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
    assert not {"link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert not re.search(r"<script[^>]*\bsrc|fetch\(|XMLHttpRequest|import\(", html)
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
    assert re.findall(r"<h3><span>([^<]*)</span>", html) == [
        card.name for card in cards(inputs.summary, first="per-language")
    ]
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


def test_verdicts_state_their_reasons_and_limits(html, inputs):
    for configuration in inputs.summary.configurations:
        verdict = configuration.verdict
        if verdict is not None:
            assert f'<h3><span>{configuration.name}</span> <span class="outcome">{verdict.outcome}</span>' in html
            assert all(f"<li>{reason}</li>" in html for reason in verdict.reasons)
    assert {c.verdict.outcome for c in inputs.summary.configurations if c.verdict} >= {"rejected"}
    for pair in (
        "<td>0.5</td><td>2</td>",
        "<td>3</td><td>8</td>",
        "<td>0.03</td><td>0.1</td>",
        "points</td><td>1</td><td>3",
    ):
        assert pair in html


def test_the_first_card_is_the_main_configuration_and_the_last_the_baseline(inputs):
    found = cards(inputs.summary, first="global")
    assert [found[0].name, found[-1].name] == ["global", "full"]
    assert found[-1].outcome == "baseline"
    facts = {fact.label: fact for fact in found[0].facts}
    assert facts["experts kept"].value == "25.0%"
    assert facts["memory"].value == "15.3 MiB"  # 40e6 (.2 + .8 / 4) / 2**20
    assert facts["memory"].detail == "40% of full"
    change = inputs.summary["global"].figure("chrf", "into English").change
    assert facts["into English chrF++"].value == f"{change.value:.2f}".replace("-", "−")
    flagged = inputs.summary["global"].figure("any")
    assert facts["flagged outputs"].value == f"{100 * flagged.value:.1f} %"
    assert "most: repetition" in facts["flagged outputs"].detail


def test_significant_rows_and_the_baseline_are_marked(html, inputs):
    table = html[html.index("<h2>Summary</h2>") : html.index("Change of chrF++ by group")]
    rows = re.findall(r"<tr[^>]*>.*?</tr>", table)
    by_name = {name: row for row in rows for name in inputs.names if f"</i>{name}</th>" in row}
    certain = {c.name for c in inputs.summary.configurations if (f := c.figure("chrf").change) and f.q < 0.05}
    assert {name for name, row in by_name.items() if 'class="mark"' in row} == certain
    assert [name for name, row in by_name.items() if 'class="baseline"' in row] == ["full"]


def test_every_direction_is_in_the_data_of_the_table(html, inputs):
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])
    codes = [code for code, _ in data["languages"]]
    pairs = [(codes[a], codes[b]) for a, b in zip(data["pairs"][::2], data["pairs"][1::2], strict=True)]
    assert data["configurations"] == list(inputs.names)
    for configuration, columns in zip(inputs.summary.configurations, data["values"], strict=True):
        by_name = dict(zip(data["columns"], zip(data["scales"], columns, strict=True), strict=True))
        assert pairs == [(d.source, d.target) for d in configuration.directions]
        for name, column in [("chrf", "chrf"), ("length_ratio", "length")]:
            scale, values = by_name[column]
            assert values == [round(scale * d.figures[name]) for d in configuration.directions]
        scale, changes = by_name["change"]
        wanted = [round(scale * d.changes["chrf"].value) for d in configuration.directions if d.changes]
        assert changes == (wanted or None)


def test_the_table_works_without_a_mouse_and_the_worst_directions_without_a_script(html, inputs):
    table = html[html.index('<div id="all" hidden>') : html.index("<h3>Worst directions</h3>")]
    assert all(f'name="{name}"' in table for name in ("source", "target", "configuration", "significant"))
    script = html[html.rindex("<script>") :]
    assert all(word in script for word in ("aria-sort", '"button"', "STEP = 200"))
    worst = html[html.index("<h3>Worst directions</h3>") : html.index('id="sentences"')]
    lost = inputs.summary["random"].worst()
    assert lost.direction in worst


def test_worst_sentences_carry_their_language_and_direction(html):
    part = html[html.index('id="sentences"') : html.index('id="reading"')]
    assert '<dd lang="ar-Arab" dir="auto">أيقظني في الخامسة</dd>' in part
    assert '<dd lang="hi-Deva" dir="auto">' in part
    assert "play &lt;b&gt;music&lt;/b&gt;" in part
    assert '<span class="flag">oscillation</span> <span class="flag">repetition</span>' in part
    assert part.count('class="example"') == 2 * len(MASKED)
    assert "(800 characters more)" in part  # of 300 times "play ", 700 are shown


def test_rates_and_fidelity_are_drawn(html, inputs):
    part = html[html.index('id="hallucination"') : html.index('id="fidelity"')]
    assert "Outputs flagged, %, per-language and full in all directions (30 directions)" in part
    assert part.count("<figure") == 2 * 8
    assert all(f">{name}</text>" in part for name in ("oscillation", "repetition", "off-target", "empty", "any"))
    fidelity = html[html.index('id="fidelity"') : html.index('id="experts"')]
    assert fidelity.count("<figure") == 6
    assert "dense" not in fidelity


def test_equal_input_gives_equal_bytes(tmp_path, inputs, html):
    write_report(tmp_path / "r.html", summary=inputs.summary, statistics=inputs.statistics, masks=inputs.masks)
    assert (tmp_path / "r.html").read_bytes() == html.encode()


def test_a_summary_read_back_gives_equal_bytes(tmp_path, inputs, html):
    inputs.summary.save(tmp_path / "summary.json")
    loaded = Summary.load(tmp_path / "summary.json")
    assert render(loaded, statistics=inputs.statistics, masks=inputs.masks) == html


def test_figures_follow_the_colour_scheme(html):
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    assert all("<text" in figure and re.search(r"var\(--(ink|soft)\)", figure) for figure in figures)
    assert not any(re.search(r"#[0-9a-f]{6}\b", figure) for figure in figures)
    assert html.count('<image class="light"') == html.count('<image class="dark"') == 6 + 2 + 8


def test_scores_alone_make_a_page_that_says_what_is_missing(inputs):
    html = render(inputs.summary, statistics=None, masks={})
    assert set(SECTIONS) <= set(Page(html).ids)
    assert html.count('class="missing"') == 3  # other budgets, importance and similarity


def test_one_configuration_makes_a_page(inputs):
    html = render(inputs.make_summary(effects={"full": (0.0, 0.0)}), statistics=None, masks={})
    assert Page(html)
    assert "against full</figcaption>" not in html
    assert "sentences" not in Page(html).ids


def test_budgets_make_curves(inputs):
    effects = {"full": (0.0, 0.0), "half": (-0.1, 0.0), "quarter": (-0.9, 0.0)}
    plans = {"half": {"ratio": "3:1"}, "quarter": {"ratio": "3:1"}}
    html = render(inputs.make_summary(effects=effects, plans=plans, kept={"half": 0.5}), statistics=None, masks={})
    part = html[html.index('id="budget"') : html.index('id="ratio"')]
    assert part.count("<figure") == 3
    assert ">25 %<" in part
    assert ">50 %<" in part
    assert "per language, importance, 3:1" in part


def test_directions_without_english_are_one_group(inputs):
    without = [("deu_Latn", "spa_Latn"), ("spa_Latn", "deu_Latn")]
    summary = inputs.make_summary(without, {"full": (0.0, 0.0), "global": (-1.0, 0.0)})
    assert groups(summary) == ["all"]
    assert "Mean chrF++ in all directions (2 directions)" in render(summary, statistics=None, masks={})


def test_resource_classes_make_a_table(inputs):
    pairs = list(permutations(("eng_Latn", "tam_Taml", "wol_Latn", "vie_Latn"), 2))
    html = render(inputs.make_summary(pairs, {"full": (0.0, 0.0), "global": (-1.0, 0.0)}), statistics=None, masks={})
    table = html[html.index("by resource class</h3>") : html.index('id="quality"')]
    assert table.count("· 2</small>") == 5  # high-high, low-high, high-low, very low-high, high-very low
    assert table.count("· 1</small>") == 2  # low-very low and back
    assert table.count("<td>—</td>") == 2  # low-low, very low-very low


def test_names_are_escaped(inputs):
    summary = inputs.make_summary()
    evil = replace(summary.configurations[2], name="<b>$x$</script>")
    html = render(replace(summary, configurations=(*summary.configurations[:2], evil)), statistics=None, masks={})
    assert "<b>$x$" not in html
    assert html.count("&lt;b&gt;$x$") > 5
    assert Page(html)


def test_202_languages_make_a_page_that_can_be_read(inputs):
    codes = ["eng_Latn", *(each.code for each in all_languages() if each.code != "eng_Latn")]
    pairs = [(a, b) for n, a in enumerate(codes) for m, b in enumerate(codes) if a != b and (n * m) % 3 == 0]
    assert len(pairs) > 20_000
    effects = {"full": (0.0, 0.0), "per-language": (-0.5, 0.05)}
    html = render(inputs.make_summary(pairs, effects, spbleu=True), statistics=None, masks={})
    assert len(html) < 4_000_000
    matrix = html[html.index("Change of chrF++, per-language against full, by source") :]
    matrix = matrix[: matrix.index("</figure>")]
    assert matrix.count("<image") == 2
    assert 100 < matrix.count("<text") < 202  # a third of the languages, on two sides
    dots = html[html.index("Change of chrF++ (across) and of spBLEU (up)") :]
    assert dots[: dots.index("</figure>")].count("<use") < 500  # other directions than into English are counted


def test_masks_of_no_configuration_are_refused(tmp_path, inputs):
    with pytest.raises(UsageError, match=r"configurations of the scores \(full, .*but are other instead"):
        write_report(tmp_path / "r.html", summary=inputs.summary, masks={"other": inputs.masks["global"]})


def test_masks_that_were_not_scored_are_refused(tmp_path, inputs):
    with pytest.raises(UsageError, match="`masks` must be those that `global` was scored with"):
        write_report(tmp_path / "r.html", summary=inputs.summary, masks={"global": inputs.masks["random"]})


def test_statistics_of_another_model_are_refused(tmp_path, inputs):
    with pytest.raises(UsageError, match="`statistics` must be of the model of the masks global"):
        write_report(
            tmp_path / "r.html",
            summary=inputs.summary,
            statistics=inputs.make_statistics(norm=2.0),
            masks={"global": inputs.masks["global"]},
        )


def test_the_report_is_about_masks_per_language(inputs):
    masks = dict(sorted(inputs.masks.items()))
    assert next(iter(masks)) == "frequency"
    assert main_configuration(inputs.summary, masks) == "per-language"
    assert main_configuration(inputs.summary, {}) == "per-language"


def test_configurations_have_colours_of_their_own(inputs):
    colours = configuration_colours(inputs.summary)
    assert set(colours) == set(inputs.names)
    assert len(set(colours.values())) == len(inputs.names)


@pytest.mark.parametrize(("value", "text"), [(-0.04, "+0.0"), (-1.26, "−1.3"), (2, "+2.0")])
def test_numbers_have_a_true_minus(value, text):
    assert number(value, 1, sign=True) == text
