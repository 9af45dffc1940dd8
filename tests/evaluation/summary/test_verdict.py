import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.summary.summary import Change, DirectionSummary, Figure, GroupSummary
from nllb_prune.evaluation.summary.verdict import LIMITS, judge, parse_limits


def figure(change, *, value=0.5, q=0.001):
    return Figure(value, value, value, Change(change, change, change, q, q))


def group(name="all", *, chrf=0.0, bleu=0.0, length=0.0, **rates):
    figures = {"chrf": figure(chrf), "bleu": figure(bleu), "length_ratio": figure(length, value=1 + length)}
    return GroupSummary(name, 3, figures | {name: figure(change) for name, change in rates.items()})


def direction(change, q=0.001, target="deu_Latn"):
    return DirectionSummary("eng_Latn", target, 0.25, {}, {"chrf": Change(change, change, change, q, q)})


def verdict(*groups, directions=(), detectors=("oscillation", "script"), limits=LIMITS):
    return judge(groups or (group(),), directions, detectors=detectors, limits=limits)


def test_nothing_changed_is_accepted():
    assert verdict(directions=[direction(0.0)]) == verdict()
    assert verdict().outcome == "accepted"
    assert verdict().reasons == ()


@pytest.mark.parametrize(
    ("change", "outcome"), [(-0.5, "accepted"), (-0.6, "accepted with warnings"), (-2.1, "rejected"), (3, "accepted")]
)
def test_mean_loss(change, outcome):
    assert verdict(group(chrf=change)).outcome == outcome


def test_a_loss_by_chance_does_not_count():
    lost = GroupSummary("all", 3, {**group().figures, "chrf": figure(-9.0, q=0.06)})
    assert verdict(lost).outcome == "accepted"


def test_reasons_name_what_failed_the_graver_first():
    found = verdict(
        group(chrf=-0.6, oscillation=0.04),
        group("into English", chrf=-1.5, length=0.164),
        directions=[direction(-2.0), direction(-9.5, target="swh_Latn")],
    )
    assert found.outcome == "rejected"
    assert [reason.split(" (limits")[0] for reason in found.reasons] == [
        "loses 9.5 chrF++ in eng_Latn-swh_Latn",
        "length ratio 1.164 into English, +0.164",
        "oscillation: 50.0 % of outputs on average, +4.0",
        "loses 0.60 chrF++ on average",
        "loses 1.50 chrF++ into English",
    ]
    assert "3 to warn, 8 to reject" in found.reasons[0]


def test_shorter_outputs_count_as_longer_ones_do():
    assert verdict(group(length=-0.2)).outcome == "rejected"


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


def test_a_rate_by_chance_does_not_count():
    risen = GroupSummary("all", 3, {**group().figures, "script": figure(0.5, q=0.05)})
    assert verdict(risen).outcome == "accepted"


def test_only_the_worst_direction_is_named():
    found = verdict(directions=[direction(-9.0), direction(-12.0, target="zho_Hans"), direction(-40.0, q=0.3)])
    assert [reason.split(" (limits")[0] for reason in found.reasons] == ["loses 12.0 chrF++ in eng_Latn-zho_Hans"]


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
