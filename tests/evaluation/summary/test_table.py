from dataclasses import replace

import pytest

from nllb_prune.evaluation.summary.summary import (
    Change,
    ConfigurationSummary,
    DirectionSummary,
    Figure,
    GroupSummary,
    Summary,
)
from nllb_prune.evaluation.summary.summary import Verdict as Judged
from nllb_prune.evaluation.summary.table import HEADER, detectors, figure_of, size, table_rows, worst_detector

LOSS = Change(-1.5, -2.0, -1.0, 0.001, 0.004)
FULL = {
    "chrf": Figure(40.0, 39, 41),
    "bleu": Figure(20.0, 19, 21),
    "length_ratio": Figure(1.0, 0.9, 1.1),
    "oscillation": Figure(0.02, 0.0, 0.04),
    "repetition": Figure(0.01, 0.0, 0.02),
}
PRUNED = {
    **FULL,
    "chrf": Figure(38.5, 38, 39, LOSS),
    "oscillation": Figure(0.03, 0.0, 0.04, Change(0.01, 0, 0.02, 0.1, 0.2)),
    "repetition": Figure(0.025, 0.0, 0.04, Change(0.015, 0, 0.03, 0.1, 0.2)),
    "unlikely": Figure(0.5, 0.0, 1.0, Change(0.4, 0, 1, 0.001, 0.001)),
    "any": Figure(0.045, 0.0, 0.06, Change(0.02, 0, 0.03, 0.1, 0.2)),
}


def configuration(name, figures, *, changes, verdict, scores=(45.0, 35.0)):
    pairs = [("eng_Latn", "deu_Latn"), ("deu_Latn", "eng_Latn")]
    groups = (
        GroupSummary("all", 2, figures),
        GroupSummary("out of English", 1, {**figures, "chrf": Figure(scores[0], 0, 99)}),
    )
    directions = tuple(
        DirectionSummary(*pair, 0.25, {"chrf": chrf}, {"chrf": changes[n]} if changes else {})
        for n, (pair, chrf) in enumerate(zip(pairs, scores, strict=True))
    )
    return ConfigurationSummary(
        name=name, baseline="full" if changes else None, kept=0.25, weight_bytes=3 * 2**20, plan={}, groups=groups,
        directions=directions, fidelity=None, examples=(), verdict=verdict,
    )  # fmt: skip


@pytest.fixture
def summary():
    rejected = Judged("rejected", ("a reason",))
    changes = [replace(LOSS, value=-1.0), LOSS]
    return Summary(
        model="m",
        configurations=(
            configuration("full", FULL, changes=[], verdict=None),
            configuration("pruned", PRUNED, changes=changes, verdict=rejected, scores=(44.0, 33.5)),
        ),
        baseline="full",
        sentences=10,
        beams=1,
        test={},
        signatures={
            "chrf": ("c",),
            "bleu": ("b",),
            "oscillation": ("o",),
            "repetition": ("r",),
            "off-target": ("x",),
            "unlikely": ("u",),
        },
        signatures_by_target={"chrf": {"deu_Latn": "c"}, "bleu": {"deu_Latn": "b"}},
        limits={},
        versions={},
    )


def test_rows(summary):
    full, pruned = (dict(zip(HEADER, row, strict=True)) for row in table_rows(summary))
    assert pruned == {
        "configuration": "pruned",
        "kept": "25.0%",
        "memory": "3.0 MiB",
        "chrF++": "38.50",
        "out of eng": "44.00",
        "into eng": "—",
        "lowest": "33.50",
        "BLEU": "20.00",
        "spBLEU": "—",
        "length": "1.000",
        "flagged": "4.5 %",
        "worst loss": "deu_Latn-eng_Latn -1.5",
        "q": "0.004",
        "verdict": "rejected",
    }
    assert (full["flagged"], full["worst loss"], full["q"]) == ("—", "—", "—")
    assert full["verdict"] == "baseline"


def test_detectors_are_signatures_with_a_rate(summary):
    assert detectors(summary) == ("oscillation", "repetition", "unlikely")


def test_the_worst_detector_is_the_one_that_rises_most_unlikely_outputs_apart(summary):
    name, figure = worst_detector(summary["pruned"], summary)
    assert (name, figure.value) == ("repetition", 0.025)


def test_where_no_rate_rises_the_highest_counts(summary):
    fallen = {name: replace(f, change=Change(-0.01, 0, 0, 1, 1)) for name, f in PRUNED.items()}
    each = replace(summary.configurations[1], groups=(GroupSummary("all", 2, fallen),))
    name, figure = worst_detector(each, summary)
    assert (name, figure.value) == ("oscillation", 0.03)


def test_a_figure_that_is_not_there_is_none(summary):
    assert figure_of(summary["full"], "chrf", "no such group") is None
    assert figure_of(summary["full"], "no such figure") is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**29, "1.5 GiB"), (2**51, "2048.0 TiB")]
)
def test_sizes(count, text):
    assert size(count) == text
