"""Means over groups of directions and what changed in them, recomputed here in plain loops and by sacrebleu."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import score
from nllb_prune.evaluation.significance.multiple_tests import q_values
from nllb_prune.evaluation.significance.resampling import Draws, measure_of
from nllb_prune.evaluation.summary import comparing as module
from nllb_prune.evaluation.summary.comparing import Comparing, sample
from nllb_prune.evaluation.summary.quantities import Counts

RESAMPLES, TRIALS, SEED = 200, 300, 5
NAN = float("nan")


def mean(sums):
    with np.errstate(invalid="ignore"):
        return np.true_divide(sums[..., 0], sums[..., 1])


def counts(**flags):
    """The counts of rates: 1, 0, or NaN for what is not counted."""
    found = []
    for name, each in flags.items():
        values = np.array(each, np.float64)
        columns = np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1)
        found.append(Counts(columns, {name.replace("_", " "): mean}))
    return found


def comparing(test="bootstrap", **options):
    testing = module.Testing(test=test, resamples=RESAMPLES, trials=TRIALS, seed=SEED)
    return Comparing(testing, Draws(RESAMPLES, SEED), testing.swaps(), **options)


def take_in(found, ours, theirs=None, *, groups=("all",)):
    against = None if theirs is None else (theirs, sample(theirs, found.draws))
    return found.add(ours, sample(ours, found.draws), against, groups=groups)


def drawn(lines):
    return np.random.default_rng(SEED).choice(lines, size=(RESAMPLES, lines), replace=True)


def resampled(values):
    """The mean of what is counted in each resample, by loops."""
    rates = []
    for chosen in drawn(len(values)):
        told = [values[n] for n in chosen if not np.isnan(values[n])]
        rates.append(sum(told) / len(told) if told else NAN)
    return np.array(rates)


def ends(values):
    ordered = sorted(value for value in values if not np.isnan(value))
    cut = len(ordered) // 40
    return ordered[cut], ordered[-1 - cut]


def p_of_bootstrap(differences, difference):
    sizes = [abs(value) for value in differences if not np.isnan(value)]
    centre = sum(sizes) / len(sizes)
    return (sum(size - centre > abs(difference) + 1e-10 for size in sizes) + 1) / (len(sizes) + 1)


def flags_of(seed, lines, share=0.4, uncounted=0.0):
    drawn = np.random.default_rng(seed)
    values = (drawn.random(lines) < share).astype(np.float64)
    values[drawn.random(lines) < uncounted] = NAN
    return values


# samples


def test_samples_are_the_number_on_each_resample():
    values = flags_of(1, 9, uncounted=0.3)
    found = sample(counts(script=values), Draws(RESAMPLES, SEED))["script"]
    assert found.value == pytest.approx(np.nanmean(values))
    np.testing.assert_allclose(found.resampled, resampled(values))
    assert (found.directions, found.sentences) == (1, 9)


# one direction


def test_a_rate_its_interval_and_its_change():
    ours, theirs = flags_of(1, 30), flags_of(2, 30, share=0.1)
    found = comparing()
    assert take_in(found, counts(script=ours), counts(script=theirs)) == {}
    (group,) = found.groups(["all"])
    figure = group.figures["script"]
    differences = resampled(ours) - resampled(theirs)
    assert figure.value == pytest.approx(ours.mean())
    assert (figure.low, figure.high) == pytest.approx(ends(resampled(ours)))
    assert figure.change.value == pytest.approx(ours.mean() - theirs.mean())
    assert (figure.change.low, figure.change.high) == pytest.approx(ends(differences))
    assert figure.change.p == pytest.approx(p_of_swaps(ours, theirs, ties=True))
    assert figure.change.q == figure.change.p


def test_few_flags_are_as_little_evidence_as_the_sign_test_says():
    ours = np.zeros(200)
    ours[:5] = 1  # of five that differ, all one way: 2 / 2**5
    testing = module.Testing(seed=SEED)
    found = Comparing(testing, Draws(1000, SEED), testing.swaps())
    take_in(found, counts(script=ours), counts(script=np.zeros(200)))
    change = found.groups(["all"])[0].figures["script"].change
    assert change.p == pytest.approx(0.0625, abs=0.02)
    differences = Draws(1000, SEED).weights(200) @ ours / 200
    assert p_of_bootstrap(differences, 5 / 200) < 0.04


def test_changes_of_a_direction_are_of_scores_and_length_alone():
    ours = [*counts(chrf=flags_of(1, 20)), *counts(script=flags_of(2, 20)), *counts(length_ratio=flags_of(4, 20))]
    theirs = [*counts(chrf=flags_of(3, 20)), *counts(script=flags_of(2, 20)), *counts(length_ratio=flags_of(4, 20))]
    ours[-1] = replace(ours[-1], measures={"length_ratio": mean})
    theirs[-1] = replace(theirs[-1], measures={"length_ratio": mean})
    changes = take_in(comparing(), ours, theirs)
    assert list(changes) == ["chrf", "length_ratio"]
    difference = flags_of(1, 20).mean() - flags_of(3, 20).mean()
    assert changes["chrf"].value == pytest.approx(difference)
    differences = resampled(flags_of(1, 20)) - resampled(flags_of(3, 20))
    assert changes["chrf"].p == changes["chrf"].q == pytest.approx(p_of_bootstrap(differences, difference))


def test_the_baseline_has_figures_without_changes():
    found = comparing()
    assert take_in(found, counts(script=flags_of(1, 20))) == {}
    (group,) = found.groups(["all"])
    assert group.figures["script"].change is None


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, NAN, NAN], [1.0, NAN]])
def test_what_never_differs_has_p_1(test, values):
    found = comparing(test)
    take_in(found, counts(script=values, chrf=values), counts(script=values, chrf=values))
    (group,) = found.groups(["all"])
    for name in ("script", "chrf"):
        change = group.figures[name].change
        assert (change.value, change.low, change.high, change.p, change.q) == (0.0, 0.0, 0.0, 1.0, 1.0)


# several directions


def test_means_over_directions_are_unweighted():
    lines = (10, 25, 40)
    pairs = [(flags_of(n, size, uncounted=0.2), flags_of(n + 9, size, 0.2, 0.2)) for n, size in enumerate(lines)]
    found = comparing()
    for ours, theirs in pairs:
        take_in(found, counts(chrf=ours), counts(chrf=theirs))
    (group,) = found.groups(["all"])
    figure = group.figures["chrf"]
    means = np.nanmean([resampled(ours) for ours, _ in pairs], axis=0)
    differences = means - np.nanmean([resampled(theirs) for _, theirs in pairs], axis=0)
    difference = np.mean([np.nanmean(ours) - np.nanmean(theirs) for ours, theirs in pairs])
    assert group.directions == 3
    assert figure.value == pytest.approx(np.mean([np.nanmean(ours) for ours, _ in pairs]))
    assert (figure.low, figure.high) == pytest.approx(ends(means))
    assert figure.change.value == pytest.approx(difference)
    assert (figure.change.low, figure.change.high) == pytest.approx(ends(differences))
    assert figure.change.p == pytest.approx(p_of_bootstrap(differences, difference))


def test_groups_are_apart_and_come_in_the_order_asked_for():
    one, two = flags_of(1, 12), flags_of(2, 12)
    found = comparing()
    take_in(found, counts(script=one), groups=("all", "into English"))
    take_in(found, counts(script=two), groups=("all", "out of English"))
    groups = found.groups(["into English", "all", "without English", "out of English"])
    assert [(group.name, group.directions) for group in groups] == [
        ("into English", 1),
        ("all", 2),
        ("out of English", 1),
    ]
    values = {group.name: group.figures["script"].value for group in groups}
    assert values["into English"] == pytest.approx(one.mean())
    assert values["out of English"] == pytest.approx(two.mean())
    assert values["all"] == pytest.approx((one.mean() + two.mean()) / 2)


def test_a_number_without_a_value_in_a_group_is_no_figure():
    found = comparing()
    take_in(found, counts(script=[NAN, NAN], copy=[0, 1]), groups=("all", "into English"))
    take_in(found, counts(script=[1, 0], copy=[0, 1]), groups=("all", "out of English"))
    everything, into, out = found.groups(["all", "into English", "out of English"])
    assert everything.figures["script"].value == 0.5
    assert list(into.figures) == ["copy"]
    assert set(out.figures) == {"script", "copy"}


def test_a_direction_counts_for_a_change_only_where_both_have_a_value():
    found = comparing()
    take_in(found, counts(script=[1, 1, 0, 1]), counts(script=[NAN] * 4))
    take_in(found, counts(script=[NAN] * 3), counts(script=[1, 1, 1]))
    take_in(found, counts(script=[1, 0, 0, 1, 0]), counts(script=[0, 0, 0, 1, 0]))
    (group,) = found.groups(["all"])
    assert group.figures["script"].value == pytest.approx((3 / 4 + 2 / 5) / 2)
    assert group.figures["script"].change.value == pytest.approx(1 / 5)


@pytest.mark.parametrize("test", ["bootstrap", "randomisation"])
def test_without_such_a_direction_there_is_no_change(test):
    found = comparing(test)
    take_in(found, counts(script=[1, 1, 0, 1]), counts(script=[NAN] * 4))
    (group,) = found.groups(["all"])
    assert group.figures["script"].change is None


def test_a_number_that_one_side_lacks_has_no_change():
    found = comparing("randomisation")
    take_in(found, counts(chrf=[1, 0, 1], script=[1, 0, 1]), counts(chrf=[1, 0, 0]))
    (group,) = found.groups(["all"])
    assert group.figures["script"].change is None
    assert group.figures["chrf"].change is not None


# many tests


def test_q_is_over_all_groups_and_rates_together():
    names = ("chrf", "script", "copy", "over_2", "off-target raw")
    pairs = {name: (flags_of(n, 40, 0.3), flags_of(n, 40, 0.2 + n / 20)) for n, name in enumerate(names)}

    def of(side, scale=1):
        return [Counts(counts(x=pairs[name][side])[0].columns * scale, {name: mean}) for name in names]

    found = comparing()
    take_in(found, of(0), of(1), groups=("all", "a"))
    take_in(found, of(1), of(0), groups=("all", "b"))
    groups = {group.name: group.figures for group in found.groups(["all", "a", "b"])}
    for family in (["chrf"], ["script", "copy"], ["over_2"], ["off-target raw"]):
        changes = [groups[group][name].change for group in ("all", "a", "b") for name in family]
        np.testing.assert_allclose([each.q for each in changes], q_values([each.p for each in changes]))
    assert any(each.change.q > each.change.p for each in groups["a"].values())


# randomisation


def p_of_swaps(ours, theirs, *, ties, trials=TRIALS):
    chosen = np.random.default_rng(SEED).integers(2, size=(trials, len(ours)), dtype=np.bool_)
    observed, larger = abs(np.mean(ours) - np.mean(theirs)), 0
    for swap in chosen:
        difference = abs(np.mean(np.where(swap, theirs, ours)) - np.mean(np.where(swap, ours, theirs)))
        larger += difference > observed + 1e-9 or (ties and difference > observed - 1e-9)
    return (larger + 1) / (trials + 1)


def change_by_swaps(name, ours, theirs):
    found = comparing("randomisation")
    take_in(found, counts(**{name: ours}), counts(**{name: theirs}))
    (group,) = found.groups(["all"])
    return group.figures[name].change


def test_randomisation_of_a_rate_counts_differences_as_large():
    ours, theirs = flags_of(1, 25, 0.5), flags_of(2, 25, 0.2)
    change = change_by_swaps("script", ours, theirs)
    assert change.p == pytest.approx(p_of_swaps(ours, theirs, ties=True))
    assert change.p != pytest.approx(p_of_swaps(ours, theirs, ties=False))
    differences = resampled(ours) - resampled(theirs)
    assert (change.low, change.high) == pytest.approx(ends(differences))  # intervals are of the bootstrap


def test_randomisation_of_a_score_is_that_of_sacrebleu():
    ours, theirs = flags_of(1, 25, 0.5), flags_of(2, 25, 0.2)
    assert change_by_swaps("chrf", ours, theirs).p == pytest.approx(p_of_swaps(ours, theirs, ties=False))


@given(st.integers(1, 2), st.integers(20, 60))
def test_one_or_two_sentences_are_no_finding(flagged, lines):
    ours = np.array([1.0] * flagged + [0.0] * (lines - flagged))
    assert change_by_swaps("script", ours, np.zeros(lines)).p > 0.3


# the record of the test


def test_testing_says_what_was_done():
    assert module.Testing().to_json() == {
        "name": "paired randomisation",
        "rates": "paired randomisation",
        "resamples": 1000,
        "trials": 10_000,
        "seed": 12345,
    }
    assert module.Testing(test="bootstrap", resamples=50, trials=7, seed=0).to_json() == {
        "name": "paired bootstrap",
        "rates": "paired randomisation",
        "resamples": 50,
        "trials": 7,
        "seed": 0,
    }
    assert (module.Testing().swaps().trials, module.Testing(test="bootstrap", trials=7).swaps().trials) == (10_000, 7)


# what the default test is worth


WORDS = ["wake", "me", "up", "at", "nine", "please", "play", "that", "song", "again", "turn", "off", "the", "lights"]


def scored(outputs, references):
    lines = ([" ".join(words) for words in each] for each in (outputs, references))
    table = score(*lines, target="eng_Latn")["chrf"].statistics
    return [Counts(table.astype(np.float64), {"chrf": measure_of("chrf")})]


@pytest.fixture(scope="module")
def p_of_equal_systems():
    """p of chrF++ for 200 pairs of systems that each lose a third of the words of the same 60 sentences by chance."""
    testing = module.Testing()
    found = Comparing(testing, Draws(testing.resamples, testing.seed), testing.swaps())
    drawn, p_values = random.Random(2024), []
    for _ in range(200):
        references = [drawn.choices(WORDS, k=drawn.randint(2, 12)) for _ in range(60)]
        ours, theirs = (
            scored([[w for w in line if drawn.random() < 2 / 3] for line in references], references) for _ in range(2)
        )
        against = (theirs, sample(theirs, found.draws))
        p_values.append(found.add(ours, sample(ours, found.draws), against, groups=["all"])["chrf"].p)
    return np.array(p_values)


def test_of_equal_systems_one_in_twenty_is_found_different(p_of_equal_systems):
    """Of 200 pairs, 10 are expected at .05; a binomial of 200 and .05 is from 4 to 17 with a chance of over 97 %.

    Here it is 9; the bootstrap's rule finds 28.
    """
    assert 4 <= int(np.sum(p_of_equal_systems < 0.05)) <= 17


def test_p_of_equal_systems_is_even_from_0_to_1(p_of_equal_systems):
    """Kolmogorov and Smirnov: 1.36 / sqrt(n) is the limit of the largest distance at 5 %."""
    ordered, steps = np.sort(p_of_equal_systems), np.arange(201) / 200
    distance = max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1]))
    assert distance < 1.36 / np.sqrt(200)


def test_other_tests_and_seeds_are_refused():
    with pytest.raises(UsageError, match="`test` must be bootstrap or randomisation, but is anova instead"):
        module.Testing(test="anova")
    with pytest.raises(UsageError, match="`seed` must be 0 or more, but is -1 instead"):
        module.Testing(seed=-1)
