import json
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores import chrf_from_statistics, score
from nllb_prune.evaluation.significance import Comparison, paired_bootstrap, paired_bootstrap_over_directions

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
        score(system, references, target="eng_Latn").statistics(metric),
        score(baseline, references, target="eng_Latn").statistics(metric),
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
    best, middle, last = (score(text, references, target="eng_Latn").chrf_statistics for text in (clear, close, worse))
    assert paired_bootstrap(best, last, metric="chrf").p_value == pytest.approx(1 / 1001)
    assert paired_bootstrap(middle, last, metric="chrf").p_value > 0.05


def test_system_against_itself_differs_by_nothing():
    references, (system,) = texts(lines=10, quality=(0.8,), seed=2)
    statistics = score(system, references, target="eng_Latn").bleu_statistics
    found = paired_bootstrap(statistics, statistics, metric="bleu", resamples=100)
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert found.p_value == pytest.approx(1 / 101)  # sacrebleu: no difference is not one due to chance


def test_swapping_turns_the_sign_only():
    references, (system, baseline) = texts(lines=20, quality=(0.8, 0.7), seed=3)
    one, other = (score(text, references, target="eng_Latn").chrf_statistics for text in (system, baseline))
    there, back = paired_bootstrap(one, other, metric="chrf"), paired_bootstrap(other, one, metric="chrf")
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p_value == back.p_value


def directions(*, lines):
    """Return statistics by direction of a system and a baseline."""
    pairs = {}
    for number, count in enumerate(lines):
        references, (system, baseline) = texts(lines=count, quality=(0.8, 0.7), seed=number)
        pairs[f"d{number}"] = [
            score(text, references, target="eng_Latn").chrf_statistics for text in (system, baseline)
        ]
    return tuple({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))


def test_over_directions_is_the_mean_over_resamples_drawn_alike():
    system, baseline = directions(lines=(12, 12, 12))
    found = paired_bootstrap_over_directions(system, baseline, metric="chrf", resamples=50, seed=7)
    drawn = np.random.default_rng(7).choice(12, size=(50, 12), replace=True)

    def mean(statistics, rows):
        return np.mean([chrf_from_statistics(table[rows].sum(0)) for table in statistics.values()])

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


def test_wrong_use_is_refused():
    system, baseline = directions(lines=(5, 6))
    with pytest.raises(UsageError, match=r"directions of `system` \(d0, d1\), but has d0 instead"):
        paired_bootstrap_over_directions(system, {"d0": baseline["d0"]}, metric="chrf")
    with pytest.raises(UsageError, match=r"shape \(6, 24\) instead of \(5, 24\) for d0"):
        paired_bootstrap_over_directions({"d0": system["d0"]}, {"d0": baseline["d1"]}, metric="chrf")
    with pytest.raises(UsageError, match=r"scored on the references of `system`, but \d of 4 sentences"):
        paired_bootstrap(system["d0"][1:], baseline["d0"][:-1], metric="chrf")
    with pytest.raises(UsageError, match="`metric` must be one of chrf, bleu or a function, but is 'ter' instead"):
        paired_bootstrap(system["d0"], baseline["d0"], metric="ter")
    with pytest.raises(UsageError, match="`resamples` must be 1 or more, but is 0 instead"):
        paired_bootstrap(system["d0"], baseline["d0"], metric="chrf", resamples=0)
    with pytest.raises(UsageError, match="one or more"):
        paired_bootstrap(system["d0"][:0], baseline["d0"][:0], metric="chrf")
    with pytest.raises(UsageError, match="but has none instead"):
        paired_bootstrap_over_directions({}, {}, metric="chrf")
