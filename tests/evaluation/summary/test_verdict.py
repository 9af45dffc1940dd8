import re
from dataclasses import replace

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.significance.multiple_tests import q_values
from nllb_prune.evaluation.significance.resampling import Draws
from nllb_prune.evaluation.summary import comparing as module
from nllb_prune.evaluation.summary.comparing import Comparing, sample
from nllb_prune.evaluation.summary.quantities import Counts
from nllb_prune.evaluation.summary.summary import Change, DirectionSummary, Figure, GroupSummary
from nllb_prune.evaluation.summary.verdict import LIMITS, judge, parse_limits


def changed(change, width=0.0, *, q=0.001):
    """A change with an interval that reaches so far to both sides."""
    return Change(change, change - width, change + width, q, q)


def figure(change, width=0.0, *, value=0.5, q=0.001):
    return Figure(value, value, value, changed(change, width, q=q))


def group(name="all", *, chrf=0.0, bleu=0.0, length=0.0, **rates):
    figures = {"chrf": figure(chrf), "bleu": figure(bleu), "length_ratio": figure(length, value=1 + length)}
    return GroupSummary(name, 3, figures | {name: figure(change) for name, change in rates.items()})


def direction(change, width=0.0, *, q=0.001, target="deu_Latn"):
    return DirectionSummary("eng_Latn", target, 0.25, {}, {"chrf": changed(change, width, q=q)})


def verdict(*groups, directions=(), detectors=("oscillation", "script"), limits=LIMITS, sentences=20):
    return judge(groups or (group(),), directions, detectors=detectors, limits=limits, sentences=sentences)


def told(found):
    """The reasons without the limits."""
    return [reason.split(" (limits")[0] for reason in found.reasons]


def test_nothing_changed_is_accepted():
    assert verdict(directions=[direction(0.0)]) == verdict()
    assert verdict().outcome == "accepted"
    assert verdict().reasons == ()


@pytest.mark.parametrize(
    ("change", "outcome"), [(-0.5, "accepted"), (-0.6, "accepted with warnings"), (-2.1, "rejected"), (3, "accepted")]
)
def test_mean_loss(change, outcome):
    assert verdict(group(chrf=change)).outcome == outcome


@pytest.mark.parametrize("name", ["chrf", "bleu", "length_ratio", "script"])
@pytest.mark.parametrize("q", [0.001, 0.9])
def test_a_change_counts_if_its_interval_leaves_0_out_whatever_q(name, q):
    size = 0.9 if name in ("length_ratio", "script") else 9.0
    sign = 1 if name == "script" else -1
    for width, outcome in [(0.99, "rejected"), (1.0, "accepted"), (1.01, "accepted")]:
        found = figure(sign * size, width * size, q=q)
        assert verdict(GroupSummary("all", 3, {**group().figures, name: found})).outcome == outcome, (name, width)


def test_reasons_name_what_failed_the_graver_first():
    found = verdict(
        group(chrf=-0.6, oscillation=0.04),
        group("into English", chrf=-1.5, length=0.164),
        directions=[direction(-2.0), direction(-9.5, 0.6, target="swh_Latn")],
    )
    assert found.outcome == "rejected"
    assert told(found) == [
        "loses 9.5 chrF++ in eng_Latn-swh_Latn, 8.9 at the least",
        "outputs are longer into English: length ratio 1.164, +0.164",
        "oscillation: 50.0 % of outputs on average, +4.0",
        "loses 0.60 chrF++ on average",
        "loses 1.50 chrF++ into English",
    ]
    assert "3 to warn, 8 to reject" in found.reasons[0]


def test_shorter_outputs_count_as_longer_ones_do():
    found = verdict(group(length=-0.2))
    assert found.outcome == "rejected"
    assert told(found) == ["outputs are shorter on average: length ratio 0.800, -0.200"]


def test_only_the_worst_group_of_a_detector_is_named():
    found = verdict(group(script=0.02), group("into English", script=0.05))
    assert len(found.reasons) == 1
    assert "into English" in found.reasons[0]


def test_a_falling_rate_is_no_reason():
    assert verdict(group(script=-0.5)).outcome == "accepted"


def test_rates_and_their_limits_are_told_in_percent():
    (reason,) = verdict(group(script=0.02)).reasons
    assert reason == "script: 50.0 % of outputs on average, +2.0 (limits 1 to warn, 3 to reject)"


def test_only_the_detectors_named_are_judged():
    assert verdict(group(script=0.5), detectors=("oscillation",)).outcome == "accepted"
    assert verdict(group(**{"any": 0.5})).outcome == "accepted"


def test_unlikely_outputs_are_no_fault_by_themselves():
    names = ("unlikely", "script")
    assert verdict(group(unlikely=0.9), detectors=names) == verdict()
    assert told(verdict(group(unlikely=0.9, script=0.02), detectors=names)) == [
        "script: 50.0 % of outputs on average, +2.0"
    ]


def test_only_the_worst_direction_is_named():
    given = [direction(-9.0), direction(-12.0, 0.5, q=0.9, target="zho_Hans"), direction(-40.0, 40.0)]
    assert told(verdict(directions=given)) == ["loses 12.0 chrF++ in eng_Latn-zho_Hans, 11.5 at the least"]


def test_the_worst_direction_is_the_one_that_surely_loses_most_and_judged_by_that():
    unsure = direction(-30.0, 26.0)  # 4 at the least
    assert told(verdict(directions=[unsure, direction(-6.0, 1.0, target="zho_Hans")])) == [
        "loses 6.0 chrF++ in eng_Latn-zho_Hans, 5.0 at the least"
    ]
    warn, reject = LIMITS["worst_loss"]
    for least, outcome in [
        (0.9 * warn, "accepted"),
        (1.1 * warn, "accepted with warnings"),
        (0.9 * reject, "accepted with warnings"),
        (1.1 * reject, "rejected"),
    ]:
        assert verdict(directions=[direction(-least - 20.0, 20.0)]).outcome == outcome, least


def test_a_direction_without_a_score_is_left_out():
    nothing = DirectionSummary("eng_Latn", "zho_Hans", 0.25, {}, {})
    assert verdict(directions=[nothing]).outcome == "accepted"
    assert verdict(directions=[nothing, direction(-12.0)]).outcome == "rejected"


def test_fewer_than_twenty_sentences_are_told_of_and_never_accepted_without_a_word():
    assert verdict(sentences=20) == verdict(sentences=1012)
    found = verdict(sentences=19)
    assert found.outcome == "accepted with warnings"
    assert found.reasons == ("19 sentences a direction are too few to tell (20 or more are enough to begin with)",)
    rejected = verdict(group(chrf=-9.0), sentences=3)
    assert rejected.outcome == "rejected"
    assert len(rejected.reasons) == 2
    assert rejected.reasons[0].startswith("loses 9.00 chrF++ on average (limits")
    assert rejected.reasons[1].startswith("3 sentences a direction are too few to tell")


# from sentences to the verdict


LINES, SEED = 100, 1


def share(sums):
    return sums[..., 0] / sums[..., 1]


def judged(test, directions, *, ruined=()):
    """The verdict on directions of which some lose 15 of 60 points and the others differ by chance alone."""
    testing = module.Testing(test)
    comparing = Comparing(testing, Draws(testing.resamples, testing.seed), testing.swaps())
    random, found = np.random.default_rng(SEED), []
    for n in range(directions):
        before = 60 + random.normal(0, 10, LINES)
        after = before + random.normal(0, 3, LINES) - 15 * (n in ruined)
        ours, theirs = ([Counts(np.stack([each, np.ones(LINES)], axis=1), {"chrf": share})] for each in (after, before))
        sides = [sample(each, comparing.draws) for each in (ours, theirs)]
        changes = comparing.add(ours, sides[0], (theirs, sides[1]), groups=["all"])
        found.append(DirectionSummary("eng_Latn", f"x{n:02d}_Latn", 0.25, {}, changes))
    found = with_q(found)
    (group,) = comparing.groups(["all"])
    rest = {name: figure(0.0) for name in ("bleu", "length_ratio")}
    group = GroupSummary(group.name, group.directions, {**group.figures, **rest})
    return judge([group], found, detectors=(), limits=LIMITS, sentences=LINES), found


def with_q(directions):
    """Adjust p for the number of directions: of 1,000 resamples, nothing is left of 90 of them at .05."""
    q = q_values([each.changes["chrf"].p for each in directions])
    return [
        replace(each, changes={"chrf": replace(each.changes["chrf"], q=value)})
        for each, value in zip(directions, q.tolist(), strict=True)
    ]


@pytest.mark.parametrize("test", ["randomisation", "bootstrap"])
@pytest.mark.parametrize("directions", [30, 90])
def test_one_ruined_direction_of_many_is_named_and_rejected(test, directions):
    assert judged(test, directions)[0] == verdict()
    found, each = judged(test, directions, ruined=[directions // 2])
    if (test, directions) == ("bootstrap", 90):  # the smallest p of 1,000 resamples, 90 times
        assert each[45].changes["chrf"].q > 0.05
    assert found.outcome == "rejected"
    lost, least = re.fullmatch(
        rf"loses (\S+) chrF\+\+ in eng_Latn-x{directions // 2}_Latn, (\S+) at the least .*", found.reasons[0]
    ).groups()
    assert float(lost) == pytest.approx(15, abs=3 * 3 / np.sqrt(LINES))  # three standard errors
    assert float(lost) - float(least) == pytest.approx(1.96 * 3 / np.sqrt(LINES), abs=0.2)


def test_each_limit_warns_before_it_rejects():
    for make, limit in [
        (lambda size: [group(chrf=-size)], "mean_loss"),
        (lambda size: [group(), group("into English", chrf=-size)], "into_english_loss"),
        (lambda size: [group(bleu=-size)], "bleu_loss"),
        (lambda size: [group(length=size)], "length_change"),
        (lambda size: [group(), group("low → low", length=-size)], "length_change"),
        (lambda size: [group(script=size)], "rate_rise"),
    ]:
        warn, reject = LIMITS[limit]
        sizes = (0.9 * warn, 1.1 * warn, 0.9 * reject, 1.1 * reject)
        outcomes = [verdict(*make(size)).outcome for size in sizes]
        assert outcomes == ["accepted", "accepted with warnings", "accepted with warnings", "rejected"], limit


def test_spbleu_is_judged_where_there_is_one():
    figures = {**group(bleu=-9.0).figures, "spbleu": figure(-0.1)}
    assert verdict(GroupSummary("all", 3, figures)).outcome == "accepted"
    assert verdict(group(bleu=-9.0)).outcome == "rejected"


def test_limits_can_be_changed():
    limits = parse_limits(["mean_loss=1/5", "rate_rise=0.5/0.6"])
    assert limits == {**LIMITS, "mean_loss": (1.0, 5.0), "rate_rise": (0.5, 0.6)}
    assert verdict(group(chrf=-0.9, script=0.3), limits=limits).outcome == "accepted"


@pytest.mark.parametrize(
    "text", ["mean_loss", "mean_loss=1", "mean_loss=2/1", "mean_loss=-1/2", "loss=1/2", "x", "mean_loss=nan/1"]
)
def test_refuses_other_limits(text):
    with pytest.raises(UsageError, match="must be NAME=WARN/REJECT"):
        parse_limits([text])
