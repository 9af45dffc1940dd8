import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import corpus_scores, score
from nllb_prune.evaluation.significance.bootstrap import (
    Comparison,
    Draws,
    PairedMean,
    Samples,
    compare,
    flag_statistics,
    interval,
    mean,
    measure_of,
    paired_bootstrap,
    paired_bootstrap_over_directions,
    rate,
    samples,
)

WORDS = ["wake", "me", "up", "at", "nine", "please", "play", "that", "song", "again", "turn", "off", "the", "lights"]


def texts(*, lines, quality, seed):
    """Return references and, per quality, hypotheses that keep that share of the words."""
    generator = random.Random(seed)
    references = [" ".join(generator.choices(WORDS, k=generator.randint(2, 12))) for _ in range(lines)]
    systems = [
        [" ".join(w for w in line.split() if generator.random() < share) for line in references] for share in quality
    ]
    return references, systems


def sacrebleu_result(references, system, baseline, resamples):
    metrics = {"chrf": CHRF(word_order=2), "bleu": BLEU()}
    named = [("baseline", baseline), ("system", system)]
    _, results = PairedTest(named, metrics, [references], test_type="bs", n_samples=resamples)()
    return {"chrf": results["chrF2++"], "bleu": results["BLEU"]}


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
@pytest.mark.parametrize(
    ("lines", "quality", "resamples"),
    [
        (60, (0.8, 0.78), 1000),
        (60, (0.7, 0.75), 200),
        (25, (0.8, 0.8), 200),
        (40, (0.9, 0.5), 200),
        (8, (0.8, 0.7), 33),
    ],
)
def test_equals_sacrebleu(monkeypatch, metric, lines, quality, resamples):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    references, (system, baseline) = texts(lines=lines, quality=quality, seed=lines)
    theirs_baseline, theirs = sacrebleu_result(references, system, baseline, resamples)[metric]
    ours = paired_bootstrap(
        score(system, references, target="eng_Latn")[metric].statistics,
        score(baseline, references, target="eng_Latn")[metric].statistics,
        metric=metric,
        resamples=resamples,
    )
    assert ours.p_value == pytest.approx(theirs.p_value, abs=1e-12)
    for estimate, result in ((ours.system, theirs), (ours.baseline, theirs_baseline)):
        assert estimate.value == pytest.approx(result.score, abs=1e-9)
        # sacrebleu resamples in float32
        assert estimate.mean == pytest.approx(float(result.mean), abs=1e-4)
        assert estimate.interval == pytest.approx(float(result.ci), abs=1e-4)
    assert ours.difference == pytest.approx(theirs.score - theirs_baseline.score)
    assert ours.low <= ours.difference <= ours.high


def test_oracle_cases_cover_clear_and_unclear_differences():
    references, (clear, close, worse) = texts(lines=60, quality=(0.9, 0.5, 0.49), seed=1)
    best, middle, last = (
        score(text, references, target="eng_Latn")["chrf"].statistics for text in (clear, close, worse)
    )
    assert paired_bootstrap(best, last, metric="chrf").p_value == pytest.approx(1 / 1001)
    assert paired_bootstrap(middle, last, metric="chrf").p_value > 0.05


def test_system_against_itself_differs_by_nothing():
    references, (system,) = texts(lines=10, quality=(0.8,), seed=2)
    statistics = score(system, references, target="eng_Latn")["bleu"].statistics
    found = paired_bootstrap(statistics, statistics, metric="bleu", resamples=100)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.p_value == pytest.approx(1 / 101)  # sacrebleu: no difference is not one due to chance


def test_swapping_turns_the_sign_only():
    references, (system, baseline) = texts(lines=20, quality=(0.8, 0.7), seed=3)
    one, other = (score(text, references, target="eng_Latn")["chrf"].statistics for text in (system, baseline))
    there, back = paired_bootstrap(one, other, metric="chrf"), paired_bootstrap(other, one, metric="chrf")
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == back.p_value


def directions(*, lines):
    """Return statistics by direction of a system and a baseline."""
    pairs = {}
    for number, count in enumerate(lines):
        references, (system, baseline) = texts(lines=count, quality=(0.8, 0.7), seed=number)
        pairs[f"d{number}"] = [
            score(text, references, target="eng_Latn")["chrf"].statistics for text in (system, baseline)
        ]
    return tuple({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))


def test_over_directions_is_the_mean_over_resamples_drawn_alike():
    system, baseline = directions(lines=(12, 12, 12))
    found = paired_bootstrap_over_directions(system, baseline, metric="chrf", resamples=50, seed=7)
    drawn = np.random.default_rng(7).choice(12, size=(50, 12), replace=True)

    def mean(statistics, rows):
        return np.mean([corpus_scores(table[rows].sum(0), "chrf") for table in statistics.values()])

    samples = [mean(system, rows) - mean(baseline, rows) for rows in drawn]
    everything = np.arange(12)
    assert found.difference == pytest.approx(mean(system, everything) - mean(baseline, everything))
    assert (found.low, found.high) == pytest.approx((sorted(samples)[1], sorted(samples)[-2]))
    assert (found.directions, found.sentences) == (3, 36)


def test_over_one_direction_is_the_test_of_that_direction():
    system, baseline = directions(lines=(15,))
    one = paired_bootstrap(system["d0"], baseline["d0"], metric="chrf", resamples=80)
    assert paired_bootstrap_over_directions(system, baseline, metric="chrf", resamples=80) == one


def test_directions_of_other_lengths_and_order_do_not_matter():
    system, baseline = directions(lines=(9, 20, 9))
    turned = dict(reversed(system.items())), dict(reversed(baseline.items()))
    found = paired_bootstrap_over_directions(system, baseline, metric="chrf", resamples=60)
    assert paired_bootstrap_over_directions(*turned, metric="chrf", resamples=60) == found
    assert found.sentences == 38


def test_round_trip_through_json():
    system, baseline = directions(lines=(5, 6))
    found = paired_bootstrap_over_directions(system, baseline, metric="chrf", resamples=10)
    assert Comparison.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_nothing_counted_is_null_in_json():
    nothing = samples(flag_statistics([np.nan, np.nan]), rate, Draws(10))
    found = compare(nothing, nothing, metric="rate")
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["p_value"] is content["difference"] is content["system"]["value"] is None
    again = Comparison.from_json(content)
    assert np.isnan([again.p_value, again.difference, again.low, again.system.mean, again.baseline.interval]).all()
    assert (again.metric, again.sentences) == ("rate", found.sentences)


def test_lengths_are_each_drawn_afresh():
    system, baseline = directions(lines=(9, 20))
    measure = measure_of("chrf")
    draws = Draws(40, 5)
    for key in system:
        alone = paired_bootstrap(system[key], baseline[key], metric="chrf", resamples=40, seed=5)
        pair = (samples(each[key], measure, draws) for each in (system, baseline))
        assert compare(*pair, metric="chrf", seed=5) == alone


def test_a_mean_is_taken_as_the_directions_come():
    system, baseline = directions(lines=(9, 20, 9))
    measure, draws, total = measure_of("chrf"), Draws(60), PairedMean()
    for key in system:
        total.add(samples(system[key], measure, draws), samples(baseline[key], measure, draws))
    found = compare(*total.samples(), metric="chrf")
    assert found == paired_bootstrap_over_directions(system, baseline, metric="chrf", resamples=60)
    alone = mean(samples(system[key], measure, draws) for key in system)
    assert (alone.value, alone.directions, alone.sentences) == (found.system.value, 3, 38)
    assert alone.resampled.mean() == pytest.approx(found.system.mean)


FLAGS = st.lists(st.sampled_from([0.0, 1.0, float("nan")]), min_size=1, max_size=12)


@settings(deadline=None)
@given(FLAGS, st.integers(1, 9))
def test_rates_of_flags_are_resampled_means(flags, seed):
    found = samples(flag_statistics(flags), rate, Draws(25, seed))
    drawn = np.random.default_rng(seed).choice(len(flags), size=(25, len(flags)))
    counted = [[flags[n] for n in rows if flags[n] == flags[n]] for rows in drawn]
    expected = [sum(row) / len(row) if row else np.nan for row in counted]
    assert found.resampled == pytest.approx(np.array(expected), nan_ok=True)
    known = [flag for flag in flags if flag == flag]
    assert found.value == pytest.approx(sum(known) / len(known) if known else np.nan, nan_ok=True)


def test_a_direction_without_a_value_is_left_out_of_both():
    nothing, some, more = ([np.nan] * 4, [0.0, 1, 1, np.nan], [1.0, 1, 1, 0])
    draws, total = Draws(200), PairedMean()
    for system, baseline in ((nothing, more), (some, more), (more, nothing)):
        total.add(*(samples(flag_statistics(flags), rate, draws) for flags in (system, baseline)))
    system, baseline = total.samples()
    assert (system.value, baseline.value) == (pytest.approx(2 / 3), 0.75)
    assert (system.directions, system.sentences) == (baseline.directions, baseline.sentences) == (1, 4)
    found = compare(system, baseline, metric="rate")
    assert found.difference == pytest.approx(2 / 3 - 3 / 4)
    assert 0 < found.p_value < 1


def test_a_resample_without_a_value_is_left_out():
    empty = Samples(0.5, np.array([np.nan, 0.25, 1.0]))
    whole = Samples(1.0, np.array([0.5, 0.75, np.nan]))
    found = mean([empty, whole])
    assert (found.value, found.resampled.tolist()) == (0.75, [0.5, 0.5, 1.0])
    assert interval(empty) == (0.25, 1.0)
    neither = mean([Samples(float("nan"), np.full(3, np.nan))])
    assert np.isnan(interval(neither)).all()


def test_interval_leaves_95_percent():
    assert interval(Samples(0.0, np.arange(1000.0)[::-1])) == (25, 974)
    assert interval(np.arange(39.0)) == (0, 38)


def test_a_resample_without_a_value_is_left_out_of_both():
    total = PairedMean()
    total.add(Samples(0.5, np.array([np.nan, 0.25])), Samples(0.5, np.array([9.0, 0.5])))
    total.add(Samples(1.0, np.array([0.5, 0.75])), Samples(0.0, np.array([1.0, 0.5])))
    system, baseline = total.samples()
    assert (system.resampled.tolist(), baseline.resampled.tolist()) == ([0.5, 0.5], [1.0, 0.5])


def test_rounding_does_not_decide_between_ties():
    above = 0.1 + 0.2  # more than 0.3 by rounding alone
    found = compare(Samples(0.15, np.array([above, -above, 0, 0])), Samples(0.0, np.zeros(4)), metric="x")
    assert above - above / 2 > found.difference
    assert found.p_value == 1 / 5  # |d| - mean is 0.15 twice: as large as the difference, not larger


def test_wrong_use_is_refused():
    system, baseline = directions(lines=(5, 6))
    with pytest.raises(UsageError, match=r"directions of `system` \(d0, d1\), but has d0 instead"):
        paired_bootstrap_over_directions(system, {"d0": baseline["d0"]}, metric="chrf")
    with pytest.raises(UsageError, match=r"shape \(6, 24\) instead of \(5, 24\) for d0"):
        paired_bootstrap_over_directions({"d0": system["d0"]}, {"d0": baseline["d1"]}, metric="chrf")
    with pytest.raises(UsageError, match=r"scored on the references of `system`, but \d of 4 sentences"):
        paired_bootstrap(system["d0"][1:], baseline["d0"][:-1], metric="chrf")
    with pytest.raises(
        UsageError, match="`metric` must be one of chrf, bleu, spbleu or a function, but is 'ter' instead"
    ):
        paired_bootstrap(system["d0"], baseline["d0"], metric="ter")
    with pytest.raises(UsageError, match="`resamples` must be 1 or more, but is 0 instead"):
        paired_bootstrap(system["d0"], baseline["d0"], metric="chrf", resamples=0)
    with pytest.raises(UsageError, match="one or more"):
        paired_bootstrap(system["d0"][:0], baseline["d0"][:0], metric="chrf")
    with pytest.raises(UsageError, match="but has none instead"):
        paired_bootstrap_over_directions({}, {}, metric="chrf")
    with pytest.raises(UsageError, match=r"shape \(sentences, columns\), of one sentence or more, but have \(3,\)"):
        samples(np.zeros(3), rate, Draws(2))
    with pytest.raises(UsageError, match="must be of one direction or more, but are of none"):
        mean([])
    with pytest.raises(UsageError, match="must have 3 resamples as those before, but have 2 instead"):
        mean([Samples(0.0, np.zeros(3)), Samples(0.0, np.zeros(2))])
    with pytest.raises(UsageError, match=r"`system`, \(3, 1, 0\), but is of \(2, 1, 0\) instead"):
        compare(Samples(0.0, np.zeros(3)), Samples(0.0, np.zeros(2)), metric="x")
