"""The section of the page on the guard."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from nllb_prune.masks import MaskSet
from nllb_prune.report.guard import guard_of
from nllb_prune.report.guard_page import guard_pages
from nllb_prune.report.plots_guard import guard_plots

NEXT = '<section id="length">'


def section(html):
    return html[html.index('<section id="guard">') : html.index(NEXT)]


def texts(svg):
    return re.findall(r"<text[^>]*>(.*?)</text>", svg, flags=re.DOTALL)


def rows(part):
    """The cells of each line of the tables, as plain text."""
    found = re.findall(r"<tr>(.*?)</tr>", part, flags=re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL) for row in found]
    return [[re.sub(r"<[^>]*>", " ", cell).split() for cell in row] for row in cells if row]


def test_without_a_guard_there_is_no_section(page_of, searched):
    html = page_of({"layers": searched["layers"]})
    assert 'id="guard"' not in html
    assert 'href="#guard"' not in html
    assert "<dt>Guard</dt>" not in html


def test_the_outcome_is_said_in_words(page_of, guarded):
    html = page_of({"safe": guarded()})
    part = section(html)
    assert 'href="#guard">Guard</a>' in html
    assert "<dt>Guard</dt>" in html
    assert '<span class="outcome bad">1 of 4 masks failed, 2 not measured</span>' in part
    plain = " ".join(re.sub(r"<[^>]*>", " ", part).split())
    assert "masks passed 3 of 4 encoder 2 of 2, decoder 1 of 2" in plain
    assert "directions passed 1 of 2 by their losses" in plain
    assert "masks grown 2" in plain
    assert "experts added 2.0 a direction at most 2; reserve: 2 experts" in plain
    assert "measures 7 1,200 directions in all" in plain
    assert (
        "Measured on 2 directions, 2 languages, 16 sentences each, 8 of them translated. "
        "Sentences are spread over 900 lines after the first 100." in plain
    )


def test_the_table_of_masks(page_of, guarded):
    masks, _, directions = re.findall(r"<table.*?</table>", section(page_of({"safe": guarded()})), flags=re.DOTALL)
    failed, grown = rows(masks)
    assert failed[0] == ["English", "decoder", "·", "eng_Latn"]
    assert failed[1] == ["failed", "deu_Latn", "→", "eng_Latn", "token", "loss", "1.2", "×"]
    assert failed[2:4] == [["4", "→", "6"], ["+0.120"]]
    assert grown[:4] == [["German", "decoder", "·", "deu_Latn"], ["passed"], ["4", "→", "6"], ["+0.075"]]
    assert grown[5] == ["−0.10"]  # percent
    assert '<b class="bad">failed</b>' in masks
    assert '<b class="good">passed</b>' in masks
    assert "token loss<small>up to 0.15 nats</small>" in masks
    assert "length<small>±3 %</small>" in masks
    first, second = rows(directions)
    assert first[:3] == [["German", "→", "English", "deu_Latn-eng_Latn"], ["failed"], ["+0.180", "1.2", "×"]]
    assert '<td class="over">+0.180<small>1.2 ×</small></td>' in directions
    assert second[1:3] == [["passed"], ["+0.090"]]
    assert "length" not in directions


def test_masks_that_passed_as_planned_unfold(page_of, guarded):
    part = section(page_of({"safe": guarded()}))
    rest = part[part.index("<summary>2 that passed as planned</summary>") :]
    assert [row[0][-1] for row in rows(rest[: rest.index("</table>")])] == ["deu_Latn", "eng_Latn"]
    assert [row[2] for row in rows(rest[: rest.index("</table>")])] == [["4"], ["4"]]


def test_figures_over_their_tolerance_are_marked(page_of, guarded):
    record = guarded().plan["guard"]
    record["masks"]["encoder"]["eng_Latn"]["figures"] |= {"length_change": -0.06, "runaway_change": float("nan")}
    record["masks"]["encoder"]["eng_Latn"]["passed"] = False
    masks = guarded(masks=record["masks"], failed=["encoder/eng_Latn", "decoder/eng_Latn"])
    part = section(page_of({"safe": masks}))
    assert '<td class="over">−6.0<small>2.0 ×</small></td><td>—</td>' in part


def test_each_mask_has_a_row_in_the_figure(guarded):
    encoder, decoder = guard_plots("safe", guard_of(guarded()))
    assert encoder.title == "Worst figure of each encoder mask, times its tolerance, safe"
    assert {"German", "English", "4"} <= set(texts(encoder.svg))
    assert {"German", "English", "4 → 6"} <= set(texts(decoder.svg))
    # The tolerance; of English a cross, a diamond and a ring; of German a dot and a ring.
    assert decoder.svg.count("var(--bad)") >= 2
    assert "var(--good)" in decoder.svg
    assert "var(--bad)" not in encoder.svg


def test_what_is_far_over_is_told_in_words(guarded):
    record = guarded().plan["guard"]
    record["masks"]["decoder"]["eng_Latn"]["figures"]["loss_change"] = 15.0
    _, decoder = guard_plots("safe", guard_of(guarded(masks=record["masks"])))
    assert "4 → 6 (100 ×)" in texts(decoder.svg)
    ticks = [float(text) for text in texts(decoder.svg) if re.fullmatch(r"\d+(\.\d+)?", text)]
    assert 3 <= max(ticks) < 5


def test_the_main_configuration_comes_first_and_is_open(page_of, guarded, searched):
    masks = guarded(failed=[])
    random = replace(masks, plan={**masks.plan, "criterion": "random"})
    part = section(page_of({"a": random, "other": searched["ratio"], "b": guarded()}))
    assert re.findall(r"</i>(\w+) <span class=\"outcome (\w+)\">", part) == [("a", "good"), ("b", "bad")]
    part = section(page_of({"a": random, "b": guarded(), "c": masks}))
    assert re.findall(r"</i>(\w+) <span class=\"outcome (\w+)\">", part) == [("b", "bad"), ("a", "good"), ("c", "good")]
    assert part.count("<details open>") == 1
    assert part.index("<details open>") < part.index("</i>b <span")


def test_202_languages(page_of, of_202):
    html = page_of({"many": of_202})
    part = section(html)
    assert len(part.encode()) < 250_000
    assert "68 of 404 masks failed" in part
    shown = part[part.index("<h3>Masks</h3>") :]
    assert len(rows(shown[: shown.index("</table>")])) == 16
    assert "<summary>119 more that failed or grew and 269 that passed as planned</summary>" in part
    assert "392 more directions failed." in part  # of 68 targets with six sources each, 16 are shown
    decoder = guard_plots("many", guard_of(of_202))[1]
    assert len([text for text in texts(decoder.svg) if "→" in text]) == 24
    assert "178 masks that are below are not drawn" in decoder.note


def test_equal_masks_give_equal_bytes(page_of, guarded, tmp_path):
    guarded().save(tmp_path / "m.json")
    assert page_of({"safe": guarded()}) == page_of({"safe": MaskSet.load(tmp_path / "m.json")})


class Nesting(HTMLParser):
    """Checks that elements nest, and collects text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def handle_startendtag(self, tag, attributes):
        pass


def test_names_are_escaped(page_of, guarded):
    masks = guarded()
    evil = "<i>$x$</i>&"
    record = {**masks.plan["guard"], "failed": [f"decoder/{evil}"]}
    record["masks"] = {stack: {**each, evil: each["eng_Latn"]} for stack, each in record["masks"].items()}
    record["directions"] = {**record["directions"], f"{evil}-deu_Latn": record["directions"]["deu_Latn-eng_Latn"]}
    found = {stack: {**each, evil: each["eng_Latn"]} for stack, each in masks.masks.items()}
    masks = replace(masks, masks=found, plan={**masks.plan, "guard": record})
    part = section(page_of({"<b>safe</b>": masks}))
    assert "<i>$x$" not in part
    assert "<b>safe" not in part
    assert part.count("&lt;i&gt;$x$&lt;/i&gt;&amp;") > 4
    assert Nesting(part)


@pytest.mark.parametrize("fixture", ["guarded_pairs", "guarded_decoder"])
def test_other_masks_make_a_section(request, page_of, fixture):
    part = section(page_of({"safe": request.getfixturevalue(fixture)}))
    assert Nesting(part)
    assert "failed" in part
    assert "deu_Latn → eng_Latn" in part


def test_what_planning_wrote_makes_a_page(page_of, planned):
    masks = planned(ratio="auto-per-language", layers="auto", guard=True)
    html = page_of({"measured": masks})
    (page,) = guard_pages({"measured": masks})
    shown = len(page.masks.rows) + len(page.masks.more)
    assert shown == 20
    for name in ("ratio-search", "layer-search", "guard"):
        assert f'<section id="{name}">' in html
        assert f'href="#{name}"' in html
    assert page_of({"measured": masks}) == html
