"""The worst sentences: newly flagged by a detector, or losing most, each once and in a fixed order."""

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from nllb_prune.evaluation.detectors.flagging import Flags
from nllb_prune.evaluation.summary.examples import Examples

CODES = ("eng_Latn", "deu_Latn")
SOURCES = [f"sentence number {n}" for n in range(12)]
REFERENCES = [f"Satz mit der Nummer {n} und Worten" for n in range(12)]


@pytest.fixture
def text(text_of, tmp_path):
    return text_of(tmp_path / "text", eng_Latn=SOURCES, deu_Latn=REFERENCES, spa_Latn=SOURCES)


def flags(**lines):
    flagged = {name: np.isin(np.arange(12), each) for name, each in lines.items()}
    return Flags(flagged, {name: np.ones(12, np.bool_) for name in flagged}, None, None)


def worse(*lines, cut=8):
    """Outputs that lose the more the earlier a line is named."""
    outputs = list(REFERENCES)
    for place, line in enumerate(lines):
        outputs[line] = REFERENCES[line][: cut + 2 * place]
    return outputs


@pytest.fixture
def look(make_result, text):
    def add(examples, outputs, *, new, before=None, baseline=REFERENCES, source="eng_Latn"):
        result = make_result(outputs, REFERENCES, configuration="few", source=source)
        theirs = make_result(baseline, REFERENCES, source=source)
        before = flags(**{name: [] for name in new.flagged}) if before is None else before
        examples.add(result, theirs, flags=new, baseline_flags=before, text=text)
        return examples

    return add


def lines(examples):
    return [(each.line, each.flagged) for each in examples.found()]


def test_an_example_shows_everything_side_by_side(look):
    outputs = worse(4)
    baseline = [*REFERENCES[:4], "Satz mit Nummer 4", *REFERENCES[5:]]
    (found,) = look(Examples(), outputs, new=flags(short=[4]), baseline=baseline).found()
    metric = CHRF(word_order=2)
    assert (found.source, found.target, found.line) == (*CODES, 5)
    assert (found.text, found.reference) == (SOURCES[4], REFERENCES[4])
    assert (found.baseline, found.output) == (baseline[4], outputs[4])
    assert found.chrf == round(metric.sentence_score(outputs[4], [REFERENCES[4]]).score, 2)
    assert found.baseline_chrf == round(metric.sentence_score(baseline[4], [REFERENCES[4]]).score, 2)
    assert found.flagged == ("short",)


def test_detectors_come_first_the_largest_loss_of_each_first(look):
    found = look(Examples(), worse(7, 2, 5, 9), new=flags(short=[9, 2], copy=[5]))
    assert lines(found) == [(3, ("short",)), (10, ("short",)), (6, ("copy",)), (8, ())]


def test_an_example_is_shown_once_with_all_that_flags_it(look):
    found = look(Examples(), worse(7, 2), new=flags(short=[2, 7], copy=[2], long=[]))
    assert lines(found) == [(8, ("short",)), (3, ("short", "copy"))]


def test_what_the_baseline_was_flagged_for_is_not_new(look):
    found = look(Examples(), worse(7, 2), new=flags(short=[2, 7], copy=[2]), before=flags(short=[2], copy=[]))
    assert lines(found) == [(8, ("short",)), (3, ("copy",))]


def losses(outputs):
    """The lines in the order of what they lose, by sacrebleu; no two are alike."""
    metric = CHRF(word_order=2)
    scores = [metric.sentence_score(*pair).score for pair in zip(outputs, [[line] for line in REFERENCES], strict=True)]
    assert len(set(scores)) == len(scores)
    return [int(line) for line in np.argsort(scores)]


def test_three_of_each_detector_and_eight_by_loss_are_kept(look):
    outputs = worse(3, 1, 0, 2, 4, 11, 10, 9, 8, 7, 6, 5, cut=2)
    order, flagged = losses(outputs), (0, 4, 6, 8, 10)
    found = lines(look(Examples(), outputs, new=flags(short=flagged)))
    of_short = [line for line in order if line in flagged][:3]
    others = [line for line in order[:8] if line not in of_short]
    assert [line - 1 for line, _ in found] == of_short + others
    assert all(names == ("short",) if line - 1 in flagged else names == () for line, names in found)


def test_the_worst_of_all_directions_are_kept(look):
    outputs = worse(3, 1, 0, 2, 4, 11, 10, 9, 8, 7, 6, 5, cut=2)
    order = losses(outputs)
    parts = {"eng_Latn": order[1::2], "spa_Latn": order[::2]}  # the other half of each is translated well
    examples = Examples()
    for source, part in parts.items():
        mixed = [outputs[line] if line in part else REFERENCES[line] for line in range(12)]
        look(examples, mixed, new=flags(short=part), source=source)
    found = [(each.source, each.line - 1) for each in examples.found()]
    assert found == [("spa_Latn" if place % 2 == 0 else "eng_Latn", line) for place, line in enumerate(order[:8])]


def test_of_equal_losses_the_first_stays(look):
    examples = Examples()
    outputs = ["x"] * 12
    look(examples, outputs, new=flags(short=[8, 9, 10, 11]), baseline=["x y"] * 12)
    look(examples, outputs, new=flags(short=[0]), baseline=["x y"] * 12, source="spa_Latn")
    found = [(each.source, each.line) for each in examples.found()]
    assert found == [("eng_Latn", 9), ("eng_Latn", 10), ("eng_Latn", 11)]


def test_better_outputs_are_shown_only_if_flagged(look):
    found = look(Examples(), REFERENCES, new=flags(copy=[3]), baseline=worse(3, 4, 5))
    assert lines(found) == [(4, ("copy",))]


def test_nothing_lost_and_nothing_flagged_is_no_example(look):
    assert look(Examples(), REFERENCES, new=flags(copy=[])).found() == ()
