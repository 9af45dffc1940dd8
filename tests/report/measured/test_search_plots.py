"""Figures of the searches for a ratio and for layers."""

import re

from nllb_prune.languages import all_languages
from nllb_prune.report.plots_layer_search import layer_search_plots
from nllb_prune.report.plots_ratio_search import ratio_search_plots


def texts(plot):
    return re.findall(r"<text[^>]*>(.*?)</text>", plot.svg, flags=re.DOTALL)


def test_where_nothing_was_searched_there_are_no_figures(guarded):
    assert ratio_search_plots("safe", guarded()) == []
    assert layer_search_plots("safe", guarded()) == []


def test_the_curve_marks_what_was_chosen(searched):
    mean, worst = ratio_search_plots("auto", searched["ratio"])
    assert {"+0.043", "10", "22", "28", "encoder", "decoder"} <= set(texts(mean))
    assert "The lowest was taken: 10 + 22. Nats a token, 3 measures." in mean.note
    assert "+0.086" in texts(worst)
    assert "eng_Latn → deu_Latn" in worst.note


def test_experts_are_written_where_there_is_room(searched):
    masks = searched["ratio"]
    chosen = masks.plan["ratio_search"]["chosen"]
    near = {"encoder": chosen["encoder"] + 1, "decoder": chosen["decoder"] - 1}
    masks.plan["ratio_search"]["curve"].insert(1, {**masks.plan["ratio_search"]["curve"][1], "experts": near})
    mean, _ = ratio_search_plots("auto", masks)
    assert "10" in texts(mean)
    assert "11" not in texts(mean)


def test_a_ratio_per_language_shows_each_language(searched):
    alone, languages = ratio_search_plots("own", searched["language"])
    assert [words for words, _ in alone.keys] == ["encoder alone", "decoder alone", "both added"]
    assert "+0.120" in texts(alone)
    assert [text for text in texts(languages) if text in ("German", "English")] == ["English", "German"]
    assert {"12 + 20", "8 + 24"} <= set(texts(languages))
    assert "rises by 0.090 nats with these ratios and by 0.110 with the one for all, so these were taken" in (
        languages.note
    )


def test_a_ratio_per_language_that_was_not_taken(searched):
    masks = searched["language"]
    masks.plan["ratio_search"]["chosen"] = "shared"
    assert "so that was taken" in ratio_search_plots("own", masks)[1].note


def test_of_many_languages_both_ends_are_drawn(searched):
    masks = searched["language"]
    codes = [each.code for each in all_languages()]
    found = {code: {"encoder": 2 + n, "decoder": 300 - n, "expected_loss_change": 0.1} for n, code in enumerate(codes)}
    masks.plan["ratio_search"]["languages"] = found
    plot = ratio_search_plots("own", masks)[1]
    shown = [text for text in texts(plot) if " + " in text]
    assert len(shown) == 24
    assert {"2 + 300", f"{1 + len(codes)} + {301 - len(codes)}"} <= set(shown)
    assert f"{len(codes) - 24} languages between are not drawn" in plot.note


def test_layers_before_and_after_and_what_they_are_worth(searched):
    counts, worth = layer_search_plots("auto", searched["layers"])
    assert {"encoder layer 1", "decoder layer 3", "2 → 2", "5 → 7.5", "5 → 2.5"} <= set(texts(counts))
    assert "rose by 0.079 nats before and by 0.030 after, 18 measures" in counts.note
    assert {"+0.0504 −0.0378", "+0.0000 −0.0014"} <= set(texts(worth))  # of the first round
    assert [words for words, _ in worth.keys] == ["half as many fewer", "half as many more"]


def test_sections_have_the_main_configuration_first(page_of, searched):
    html = page_of({"a": searched["ratio"], "b": searched["language"], "c": searched["layers"]})
    part = html[html.index('<section id="ratio-search">') : html.index('<section id="layer-search">')]
    assert part.count("<figure") == 4
    assert part.index(", a</figcaption>") < part.index("Other configurations") < part.index(", b</figcaption>")
    part = html[html.index('<section id="layer-search">') : html.index('<section id="length">')]
    assert part.count("<figure") == 2
    assert "Other configurations" not in part


def test_without_searches_there_are_no_sections(page_of, guarded):
    html = page_of({"safe": guarded()})
    assert "How the ratio was found" not in html
    assert "How the layers were found" not in html
