import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import corpus_scores, score
from nllb_prune.evaluation.significance.bootstrap import Samples, flag_statistics, mean, measure_of, rate
from nllb_prune.evaluation.significance.randomisation import (
    Randomisation,
    Swaps,
    paired_randomisation,
    paired_randomisation_over_directions,
    randomisation,
    swapped,
    swapped_sums,
)

WORDS = ["wake", "me", "up", "at", "nine", "please", "play", "that", "song", "again", "turn", "off", "the", "lights"]


def texts(*, lines, quality, seed):
    generator = random.Random(seed)
    references = [" ".join(generator.choices(WORDS, k=generator.randint(2, 12))) for _ in range(lines)]
    return references, [
        [" ".join(w for w in line.split() if generator.random() < share) for line in references] for share in quality
    ]


def statistics(*, lines, quality=(0.8, 0.7), seed=0, metric="chrf"):
    references, systems = texts(lines=lines, quality=quality, seed=seed)
    return [score(text, references, target="eng_Latn")[metric].statistics for text in systems]


@pytest.mark.parametrize(
    ("lines", "quality", "trials"),
    [
        (60, (0.8, 0.78), 10_000),
        (60, (0.7, 0.75), 500),
        (40, (0.9, 0.5), 300),
        (3, (0.8, 0.6), 1000),  # eight swaps at most, so trials tie with what was observed
        (8, (0.8, 0.7), 33),
    ],
)
def test_equals_sacrebleu(monkeypatch, lines, quality, trials):
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    references, (system, baseline) = texts(lines=lines, quality=quality, seed=lines)
    metrics = {"chrf": CHRF(word_order=2), "bleu": BLEU()}
    named = [("baseline", baseline), ("system", system)]
    _, results = PairedTest(named, metrics, [references], test_type="ar", n_samples=trials)()
    ours, theirs = (score(text, references, target="eng_Latn") for text in (system, baseline))
    for metric, name in (("chrf", "chrF2++"), ("bleu", "BLEU")):
        found = paired_randomisation(ours[metric].statistics, theirs[metric].statistics, metric=metric, trials=trials)
        assert found.p_value == results[name][1].p_value
        assert found.difference == pytest.approx(results[name][1].score - results[name][0].score)
        assert (found.metric, found.sentences, found.trials, found.seed) == (metric, lines, trials, 12345)


def test_is_close_to_all_possible_swaps():
    ours, theirs = statistics(lines=7)
    everything = []
    for sides in itertools.product([False, True], repeat=7):
        side = np.array(sides)[:, None]
        one, other = (np.where(side, *pair).sum(0) for pair in ((ours, theirs), (theirs, ours)))
        everything.append(abs(corpus_scores(one, "chrf") - corpus_scores(other, "chrf")))
    observed = everything[0]
    exact = np.mean(np.array(everything) > observed + 1e-9)
    found = paired_randomisation(ours, theirs, metric="chrf", trials=20_000)
    assert 0.02 < exact < 0.98
    assert found.p_value == pytest.approx(exact, abs=0.01)


def test_system_against_itself_differs_by_nothing():
    ours, _ = statistics(lines=10)
    found = paired_randomisation(ours, ours, metric="chrf", trials=99)
    assert (found.difference, found.p_value) == (0, 1 / 100)  # sacrebleu: no difference is not one due to chance


def test_the_other_way_round_turns_the_sign_only():
    ours, theirs = statistics(lines=20)
    there, back = (paired_randomisation(*pair, metric="chrf", trials=500) for pair in ((ours, theirs), (theirs, ours)))
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == back.p_value


def test_directions_of_a_length_swap_the_same_lines():
    pairs = {f"d{n}": statistics(lines=12, seed=n) for n in range(3)}
    system, baseline = ({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
    found = paired_randomisation_over_directions(system, baseline, metric="chrf", trials=200, seed=7)
    chosen = np.random.default_rng(7).integers(2, size=(200, 12), dtype=bool)

    def difference(rows):
        side = rows[:, None]
        each = [
            corpus_scores(np.where(side, b, a).sum(0), "chrf") - corpus_scores(np.where(side, a, b).sum(0), "chrf")
            for a, b in pairs.values()
        ]
        return np.mean(each)

    observed = difference(np.zeros(12, bool))
    exceeding = sum(abs(difference(rows)) > abs(observed) + 1e-9 for rows in chosen)
    assert found.p_value == (exceeding + 1) / 201
    assert 1 < exceeding < 199
    assert found.difference == pytest.approx(observed)
    assert (found.directions, found.sentences) == (3, 36)


def test_a_mean_is_taken_as_the_directions_come():
    swaps, measure = Swaps(300, 3), measure_of("chrf")
    pairs = {f"d{n}": statistics(lines=5 + n, seed=n) for n in range(3)}
    found = randomisation(
        mean(swapped(*pair, measure=measure, swaps=swaps) for pair in pairs.values()), metric="chrf", seed=3
    )
    system, baseline = ({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
    assert found == paired_randomisation_over_directions(system, baseline, metric="chrf", trials=300, seed=3)


def test_rates_with_uncounted_sentences():
    flags = [1.0, 0, 1, np.nan, 1, 1], [0.0, 0, np.nan, 0, 1, 0]
    ours, theirs = (flag_statistics(each) for each in flags)
    found = swapped(ours, theirs, measure=rate, swaps=Swaps(400, 1))
    assert found.value == pytest.approx(4 / 5 - 1 / 5)
    chosen = np.random.default_rng(1).integers(2, size=(400, 6), dtype=bool)
    expected = [np.nanmean(np.where(rows, *flags[::-1])) - np.nanmean(np.where(rows, *flags)) for rows in chosen]
    assert found.resampled == pytest.approx(np.array(expected))
    exceeding = np.sum(np.abs(expected) > 0.6 + 1e-9)
    assert randomisation(found, metric="rate").p_value == (exceeding + 1) / 401


def test_all_columns_swapped_at_once_are_each_swapped_alone():
    """Scores of three sorts and a rate, in one table."""
    tables = [statistics(lines=14, metric=metric) for metric in ("chrf", "bleu")]
    tables.append([flag_statistics(each) for each in ([1, 0, np.nan, 1, 0, 0, 1] * 2, [0, 0, 1, np.nan, 0, 1, 0] * 2)])
    measures, swaps = [measure_of("chrf"), measure_of("bleu"), rate], Swaps(250, 9)
    together = swapped_sums(*(np.hstack([pair[side] for pair in tables]) for side in (0, 1)), swaps=swaps)
    ends = np.cumsum([0, *(pair[0].shape[1] for pair in tables)])
    for n, (pair, measure) in enumerate(zip(tables, measures, strict=True)):
        found = together.differences(measure, slice(ends[n], ends[n + 1]))
        alone = swapped(*pair, measure=measure, swaps=swaps)
        assert (found.value, found.directions, found.sentences) == (alone.value, 1, 14)
        assert len(found.resampled) == 250
        np.testing.assert_allclose(found.resampled, alone.resampled, rtol=0, atol=1e-9)
        assert np.ptp(found.resampled) > 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
def test_swapped_sums_are_those_of_the_swapped_tables(seed, lines, columns):
    """Whole numbers, so that sums are exact in whatever order."""
    ours, theirs = np.random.default_rng(seed).integers(0, 50, size=(2, lines, columns))
    found = swapped_sums(ours, theirs, swaps=Swaps(40, 4))
    chosen = np.random.default_rng(4).integers(2, size=(40, lines), dtype=bool)
    for row, sides in enumerate([np.zeros(lines, bool), *chosen]):
        side = sides[:, None]
        np.testing.assert_array_equal(found.system[row], np.where(side, theirs, ours).sum(0))
        np.testing.assert_array_equal(found.baseline[row], np.where(side, ours, theirs).sum(0))
    for column in range(columns):
        one = slice(column, column + 1)
        alone = swapped_sums(ours[:, one], theirs[:, one], swaps=Swaps(40, 4))
        np.testing.assert_array_equal(alone.system, found.system[:, one])
        np.testing.assert_array_equal(alone.baseline, found.baseline[:, one])


def test_rounding_does_not_decide_between_ties():
    found = randomisation(Samples(0.3, np.array([0.1 + 0.2, -0.3, 0.4])), metric="x")
    assert found.p_value == 2 / 4


def test_nothing_counted_has_no_p_value():
    nothing = flag_statistics([np.nan] * 3)
    found = randomisation(swapped(nothing, nothing, measure=rate, swaps=Swaps(10)), metric="rate")
    assert np.isnan(found.p_value)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["p_value"] is None
    assert np.isnan(Randomisation.from_json(content).p_value)


def test_round_trip_through_json():
    found = paired_randomisation(*statistics(lines=6), metric="chrf", trials=50)
    assert Randomisation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_wrong_use_is_refused():
    ours, theirs = statistics(lines=6)
    with pytest.raises(UsageError, match="`trials` must be 1 or more, but is 0 instead"):
        paired_randomisation(ours, theirs, metric="chrf", trials=0)
    with pytest.raises(UsageError, match=r"shape \(5, 24\) instead of \(6, 24\)"):
        paired_randomisation(ours, theirs[1:], metric="chrf")
    with pytest.raises(UsageError, match="scored on the references of `system`"):
        paired_randomisation(ours[1:], theirs[:-1], metric="chrf")
    with pytest.raises(UsageError, match="`metric` must be one of chrf, bleu, spbleu or a function"):
        paired_randomisation(ours, theirs, metric="ter")
