"""From results to the summary: every number again by sacrebleu, by numpy and by counting."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import Detector, Outputs
from nllb_prune.evaluation.detectors.identification import Py3LangId
from nllb_prune.evaluation.detectors.off_target import OffTarget
from nllb_prune.evaluation.evaluate import evaluate
from nllb_prune.evaluation.fidelity.fidelity import Fidelity
from nllb_prune.evaluation.measuring import SCORES_ONLY, Measuring
from nllb_prune.evaluation.scores.writing import bleu_tokenizer
from nllb_prune.evaluation.summary import comparing
from nllb_prune.evaluation.summary.groups import group_names, groups_of
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.evaluation.summary.verdict import LIMITS

SEED = 12345
NAMES = ("full", "every", "half", "few")


@pytest.fixture(scope="module")
def by_bootstrap(evaluation, test_text, detectors):
    return summarise(evaluation, test_text, detectors=detectors, testing=comparing.Testing(test="bootstrap"))


@pytest.fixture(scope="module")
def by_swaps(evaluation, test_text, detectors):
    testing = comparing.Testing(test="randomisation", trials=2000)
    return summarise(evaluation, test_text, detectors=detectors, testing=testing)


def paired_test(evaluation, text, name, direction, metric, kind, samples):
    target = direction[1]
    systems = [(each, list(evaluation.result(each, direction).hypotheses)) for each in ("full", name)]
    references = [list(text.lines(target)[:24])]
    metric = (
        CHRF(word_order=2, references=references)
        if metric == "chrf"
        else BLEU(tokenize=bleu_tokenizer(target), references=references)
    )
    _, found = PairedTest(systems, {"metric": metric}, None, test_type=kind, n_samples=samples)()
    (results,) = [value for key, value in found.items() if key != "System"]
    return results


def direction_of(configuration, direction):
    (found,) = [each for each in configuration.directions if (each.source, each.target) == direction]
    return found


def benjamini_hochberg(p_values):
    """The definition: the smallest level at which the test is still a finding."""
    ordered = sorted(p_values)
    return [min(ordered[k] * len(ordered) / (k + 1) for k in range(len(ordered)) if ordered[k] >= p) for p in p_values]


# one direction, by sacrebleu


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_bootstrap_of_a_direction_is_that_of_sacrebleu(
    evaluation, by_bootstrap, test_text, directions, metric, monkeypatch
):
    monkeypatch.setenv("SACREBLEU_SEED", str(SEED))
    for direction in directions[:2]:
        for name in ("half", "few"):
            full, ours = paired_test(evaluation, test_text, name, direction, metric, "bs", 1000)
            found = direction_of(by_bootstrap[name], direction)
            assert found.figures[metric] == pytest.approx(ours.score, abs=1e-4)
            assert direction_of(by_bootstrap["full"], direction).figures[metric] == pytest.approx(full.score, abs=1e-4)
            assert found.changes[metric].value == pytest.approx(ours.score - full.score, abs=1e-4)
            assert found.changes[metric].p == pytest.approx(ours.p_value, abs=1e-9)


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_intervals_of_one_direction_are_those_of_sacrebleu(
    evaluation, detectors, test_text, directions, metric, monkeypatch
):
    monkeypatch.setenv("SACREBLEU_SEED", str(SEED))
    direction = directions[1]
    one, testing = replace(evaluation, directions=(direction,)), comparing.Testing(test="bootstrap")
    alone = summarise(one, test_text, detectors=detectors, testing=testing)
    full, few = paired_test(evaluation, test_text, "few", direction, metric, "bs", 1000)
    for name, theirs in (("full", full), ("few", few)):
        figure = alone[name].figure(metric, "into English")
        assert figure.value == pytest.approx(theirs.score, abs=1e-4)
        assert (figure.high - figure.low) / 2 == pytest.approx(theirs.ci, abs=2e-4)
        assert figure.low < theirs.mean < figure.high
    assert alone["few"].figure(metric).change.p == pytest.approx(few.p_value, abs=1e-9)


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_randomisation_of_a_direction_is_that_of_sacrebleu(
    evaluation, by_swaps, test_text, directions, metric, monkeypatch
):
    monkeypatch.setenv("SACREBLEU_SEED", str(SEED))
    for direction in directions[:2]:
        _, ours = paired_test(evaluation, test_text, "half", direction, metric, "ar", 2000)
        assert direction_of(by_swaps["half"], direction).changes[metric].p == pytest.approx(ours.p_value, abs=1e-9)


def test_the_default_is_randomisation_as_sacrebleu_does_it(evaluation, summary, test_text, directions, monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", str(SEED))
    _, ours = paired_test(evaluation, test_text, "half", directions[0], "chrf", "ar", 10_000)
    assert direction_of(summary["half"], directions[0]).changes["chrf"].p == pytest.approx(ours.p_value, abs=1e-9)
    assert 1e-3 < ours.p_value < 1


# means over directions, by numpy


def draws(lines):
    return np.random.default_rng(SEED).choice(lines, size=(1000, lines), replace=True)


def chrf_of(result):
    """Corpus chrF++ of all lines and of each resample, from sacrebleu's own statistics."""
    metric = CHRF(word_order=2)
    table = result.scores["chrf"].statistics
    every = metric._compute_score_from_stats(table.sum(axis=0).tolist()).score
    return every, np.array(
        [metric._compute_score_from_stats(table[rows].sum(axis=0).tolist()).score for rows in draws(24)]
    )


@pytest.fixture(scope="module")
def chrf(evaluation, directions):
    return {name: [chrf_of(evaluation.result(name, each)) for each in directions] for name in ("full", "few")}


def ends(values):
    return tuple(np.sort(values)[[25, -26]])


def test_means_over_directions(by_bootstrap, summary, chrf, directions):
    for group in group_names(directions):
        chosen = [n for n, each in enumerate(directions) if group in groups_of(each)]
        values, resampled = (
            {name: np.mean([chrf[name][n][part] for n in chosen], axis=0) for name in chrf} for part in (0, 1)
        )
        figure = by_bootstrap["few"].figure("chrf", group)
        differences = resampled["few"] - resampled["full"]
        difference = values["few"] - values["full"]
        sizes = np.abs(differences)
        assert figure.value == pytest.approx(values["few"])
        assert (figure.low, figure.high) == pytest.approx(ends(resampled["few"]))
        assert figure.change.value == pytest.approx(difference)
        assert (figure.change.low, figure.change.high) == pytest.approx(ends(differences))
        assert figure.change.p == pytest.approx((np.sum(sizes - sizes.mean() > abs(difference)) + 1) / 1001)
        assert by_bootstrap["few"].group(group).directions == len(chosen)
        for found in (figure, figure.change):  # the test decides p alone
            other = summary["few"].figure("chrf", group)
            other = other if found is figure else other.change
            assert (found.value, found.low, found.high) == (other.value, other.low, other.high)


def test_p_of_means_over_directions(evaluation, by_swaps, directions):
    chosen = np.random.default_rng(SEED).integers(2, size=(2000, 24), dtype=np.bool_)
    metric, differences = CHRF(word_order=2), []
    for direction in directions:
        half, full = (evaluation.result(name, direction).scores["chrf"].statistics for name in ("half", "full"))
        for sides in [np.zeros(24, np.bool_), *chosen]:
            side = sides[:, None]
            ours, theirs = (np.where(side, *pair).sum(axis=0).tolist() for pair in ((full, half), (half, full)))
            scores = (metric._compute_score_from_stats(each).score for each in (ours, theirs))
            differences.append(next(scores) - next(scores))
    table = np.array(differences).reshape(len(directions), 2001)
    for group in group_names(directions):
        means = np.abs(table[[group in groups_of(each) for each in directions]].mean(axis=0))
        expected = (np.sum(means[1:] > means[0] + 1e-9) + 1) / 2001
        assert by_swaps["half"].figure("chrf", group).change.p == pytest.approx(expected)


def test_groups_are_those_of_the_directions(summary, directions):
    for name in NAMES:
        assert tuple(group.name for group in summary[name].groups) == group_names(directions)


def test_q_of_directions_is_over_all_of_them(summary, by_bootstrap):
    for found in (summary, by_bootstrap):
        for name in ("half", "few"):
            for metric in ("chrf", "bleu", "spbleu", "length_ratio"):
                changes = [direction.changes[metric] for direction in found[name].directions]
                expected = benjamini_hochberg([change.p for change in changes])
                np.testing.assert_allclose([change.q for change in changes], expected)


def test_q_of_groups_is_over_all_of_them(summary):
    few = summary["few"]
    changes = [group.figures["chrf"].change for group in few.groups]
    np.testing.assert_allclose([each.q for each in changes], benjamini_hochberg([each.p for each in changes]))
    rates = ["any", *summary.detectors]
    changes = [group.figures[name].change for group in few.groups for name in rates]
    np.testing.assert_allclose([each.q for each in changes], benjamini_hochberg([each.p for each in changes]))


# rates, by counting


def flags_by_loops(evaluation, text, detectors, name, direction):
    """What each detector flags of the outputs themselves: 1, 0, or None where it cannot tell."""
    result, full = (evaluation.result(each, direction) for each in (name, "full"))
    sources, references = (list(text.lines(code)[:24]) for code in direction)
    common = {"source": direction[0], "target": direction[1], "sources": sources}
    outputs = Outputs(
        outputs=result.hypotheses,
        references=references,
        mean_log_probabilities=result.mean_log_probabilities,
        ended=result.ended,
        **common,
    )
    both = replace(outputs, full_outputs=full.hypotheses)
    found = {}
    for each in detectors:
        values = each.values(both if each.name == "detached" else outputs)
        found[each.name] = [None if np.isnan(value) else int(value >= each.threshold) for value in values]
        if each.name == "detached":
            found["detached raw"] = [int(value >= each.threshold) for value in each.values(outputs)]
        if each.name == "off-target":
            on_references = each.values(Outputs(outputs=references, **common))
            found["off-target of references"] = [
                None if np.isnan(value) else int(value >= each.threshold) for value in on_references
            ]
    names = [each.name for each in detectors if each.name not in ("unlikely", "off-target")]
    surely = [a == 1 and b != 1 for a, b in zip(found["off-target"], found["off-target of references"], strict=True)]
    found["any"] = [int(surely[line] or any(found[name][line] == 1 for name in names)) for line in range(24)]
    return found


def rate(flags, chosen=range(24)):
    told = [flags[line] for line in chosen if flags[line] is not None]
    return sum(told) / len(told) if told else None


def test_rates_are_what_counting_gives(evaluation, summary, test_text, detectors, directions):
    seen = set()
    for name in NAMES:
        for direction in directions:
            flags = flags_by_loops(evaluation, test_text, detectors, name, direction)
            figures = direction_of(summary[name], direction).figures
            for detector, each in flags.items():
                if detector != "off-target":
                    assert figures[detector] == pytest.approx(rate(each)), (name, direction, detector)
                seen |= {detector} if any(each) else set()
            assert figures["off-target raw"] == pytest.approx(rate(flags["off-target"]))
            excess = rate(flags["off-target"]) - rate(flags["off-target of references"])
            assert figures["off-target"] == pytest.approx(excess)
    assert seen >= {"oscillation", "repetition", "off-target", "script", "detached", "unlikely", "any"}


@pytest.mark.parametrize("detector", ["oscillation", "detached", "any"])
def test_intervals_and_changes_of_rates_are_what_counting_gives(
    evaluation, summary, test_text, detectors, directions, detector
):
    flags = {
        name: [flags_by_loops(evaluation, test_text, detectors, name, each)[detector] for each in directions]
        for name in ("full", "few")
    }
    value = {name: np.mean([rate(each) for each in found]) for name, found in flags.items()}
    resampled = {
        name: np.array([np.mean([rate(each, rows) for each in found]) for rows in draws(24).tolist()])
        for name, found in flags.items()
    }
    figure = summary["few"].figure(detector)
    differences = resampled["few"] - resampled["full"]
    assert figure.value == pytest.approx(value["few"])
    assert (figure.low, figure.high) == pytest.approx(ends(resampled["few"]))
    assert figure.change.value == pytest.approx(value["few"] - value["full"])
    assert (figure.change.low, figure.change.high) == pytest.approx(ends(differences))
    assert figure.change.p == pytest.approx(p_of_swapped_rates(flags["few"], flags["full"]))


def p_of_swapped_rates(ours, theirs):
    """How often the mean over directions differs at least as much if lines are swapped, the same in all directions."""
    chosen = np.random.default_rng(SEED).integers(2, size=(10_000, 24), dtype=np.bool_)
    chosen = np.vstack([np.zeros(24, np.bool_), chosen])
    differences = []
    for pair in zip(ours, theirs, strict=True):
        few, full = (np.array([np.nan if each is None else each for each in found]) for found in pair)
        rates = (np.nanmean(np.where(chosen, *sides), axis=1) for sides in ((full, few), (few, full)))
        differences.append(next(rates) - next(rates))
    sizes = np.abs(np.mean(differences, axis=0))
    return (np.sum(sizes[1:] > sizes[0] - 1e-9) + 1) / 10_001


@dataclass(frozen=True)
class Unlettered:
    """Identifies as py3langid does, but knows no Chinese."""

    name: str = "unlettered"
    signature: str = "unlettered-1"

    def known(self, languages):
        return tuple(code for code in Py3LangId().known(languages) if code != "zho_Hans")

    def identify(self, texts, languages):
        return Py3LangId().identify(texts, self.known(languages))


def test_a_language_that_is_not_known_is_not_counted(mini, mini_tokenizer, test_text, directions, tmp_path):
    languages = ("eng_Latn", "deu_Latn", "zho_Hans")
    detectors = (Detector(OffTarget(identifier=Unlettered(), languages=languages), 0.5),)
    chosen = (("eng_Latn", "zho_Hans"), ("deu_Latn", "eng_Latn"))
    options = {"folder": tmp_path, "measuring": Measuring(detectors=detectors), "sentences": 2}
    found = evaluate(mini, mini_tokenizer, test_text, chosen, {"full": None}, **options)
    full = summarise(found, test_text, detectors=detectors)["full"]
    names = {"off-target", "off-target raw", "off-target of references"}
    assert not names & set(direction_of(full, chosen[0]).figures)
    assert names <= set(direction_of(full, chosen[1]).figures)
    assert not names & set(full.group("out of English").figures)
    for name in names:
        assert full.figure(name).value == direction_of(full, chosen[1]).figures[name]
    assert full.figure("any").value == 0.0


# what is planted is found


def test_too_few_experts_are_rejected_by_name(summary):
    verdict = summary["few"].verdict
    assert verdict.outcome == "rejected"
    first = [reason.split(":")[0] for reason in verdict.reasons]
    assert {"oscillation", "repetition", "long", "detached"} <= set(first)
    for name in ("chrF++ on average", "BLEU on average", "outputs are longer ", "at the least"):
        assert [reason for reason in verdict.reasons if name in reason], verdict.reasons
    assert all("to reject)" in reason for reason in verdict.reasons)


def test_every_expert_is_accepted_without_a_change(summary, by_swaps):
    for found in (summary["every"], by_swaps["every"]):
        assert (found.verdict.outcome, found.verdict.reasons) == ("accepted", ())
        assert found.examples == ()
        assert found.kept == 1.0
        changes = [figure.change for group in found.groups for figure in group.figures.values()]
        changes += [change for direction in found.directions for change in direction.changes.values()]
        assert {(c.value, c.low, c.high, c.p, c.q) for c in changes} == {(0.0, 0.0, 0.0, 1.0, 1.0)}


# the rest of the summary


def test_the_summary_says_how_its_numbers_were_made(summary, by_bootstrap, by_swaps, detectors):
    assert (summary.model, summary.baseline, summary.sentences, summary.beams) == ("mini", "full", 24, 1)
    assert [each.name for each in summary.configurations] == list(NAMES)
    rates = {"rates": "paired randomisation", "resamples": 1000, "seed": SEED}
    assert summary.test == {"name": "paired randomisation", "trials": 10_000, **rates}
    assert by_bootstrap.test == {"name": "paired bootstrap", "trials": 10_000, **rates}
    assert by_swaps.test == {"name": "paired randomisation", "trials": 2000, **rates}
    assert summary.limits == LIMITS
    metric = CHRF(word_order=2)
    metric.corpus_score(["a"], [["a"]])
    assert summary.signatures["chrf"] == (str(metric.get_signature()),)
    assert ["zh" in each for each in summary.signatures["bleu"]] == [False, True]
    assert {each.name: (each.signature,) for each in detectors}.items() <= summary.signatures.items()
    assert set(summary.versions) == {"nllb-prune", "torch", "transformers", "sacrebleu"}


def test_signatures_by_target_are_those_of_the_results(evaluation, summary, directions):
    expected = {
        metric: {
            target: evaluation.result("few", (source, target)).scores[metric].signature for source, target in directions
        }
        for metric in ("chrf", "bleu", "spbleu")
    }
    assert summary.signatures_by_target == expected
    metric = BLEU(tokenize="zh")
    metric.corpus_score(["a"], [["a"]])
    assert expected["bleu"]["zho_Hans"] == str(metric.get_signature()) != expected["bleu"]["deu_Latn"]
    for name, found in summary.signatures_by_target.items():
        assert summary.signatures[name] == tuple(sorted(set(found.values())))


def test_each_configuration_has_its_facts(evaluation, summary, directions):
    for name, kept in zip(NAMES, (1.0, 1.0, 0.5, 0.125), strict=True):
        found = summary[name]
        assert found.kept == pytest.approx(kept)
        assert found.plan == evaluation.plans[name]
        assert found.weight_bytes == max(evaluation.result(name, each).weight_bytes for each in directions)
        assert [(each.source, each.target) for each in found.directions] == list(directions)
        assert found.baseline == (None if name == "full" else "full")
        for each in found.directions:
            result = evaluation.result(name, (each.source, each.target))
            assert each.figures["high_length_ratio"] == result.surface.high_length_ratio
            assert each.kept == kept
    assert summary["full"].verdict is None
    assert summary["full"].directions[0].changes == {}


@pytest.mark.parametrize("turn", [1, -1])
def test_masks_of_languages_differ_in_size(mini, mini_tokenizer, test_text, random_masks, tmp_path, turn):
    sizes = {"eng_Latn": random_masks(32), "deu_Latn": random_masks(16), "spa_Latn": random_masks(8)}
    stacks = sizes["eng_Latn"].masks
    own = {stack: {code: each.masks[stack]["*"] for code, each in sizes.items()} for stack in stacks}
    masks = replace(sizes["eng_Latn"], granularity="language", masks=own)
    chosen = (("eng_Latn", "deu_Latn"), ("deu_Latn", "spa_Latn"))[::turn]
    options = {"folder": tmp_path, "measuring": SCORES_ONLY, "sentences": 1}
    found = evaluate(mini, mini_tokenizer, test_text, chosen, {"full": None, "own": masks}, **options)
    configuration = summarise(found, test_text, detectors=())["own"]
    assert [each.kept for each in configuration.directions] == [24 / 64, 12 / 64][::turn]
    assert configuration.kept == pytest.approx(18 / 64)
    assert configuration.weight_bytes == found.result("own", ("eng_Latn", "deu_Latn")).weight_bytes
    assert configuration.weight_bytes > found.result("own", ("deu_Latn", "spa_Latn")).weight_bytes


def test_fidelity_is_over_all_sentences(evaluation, summary, directions):
    results = [evaluation.result("few", each) for each in directions]
    expected = Fidelity(np.concatenate([each.fidelity.statistics for each in results])).values()
    assert summary["few"].fidelity == pytest.approx(expected)
    assert summary["few"].directions[0].fidelity == results[0].fidelity.values()
    assert summary["full"].fidelity is None


def test_examples_show_the_sentence_in_every_form(evaluation, summary, test_text):
    examples = summary["few"].examples
    assert len({(each.source, each.target, each.line) for each in examples}) == len(examples) > 8
    for each in examples:
        direction, line = (each.source, each.target), each.line - 1
        assert each.text == test_text.lines(each.source)[line]
        assert each.reference == test_text.lines(each.target)[line]
        assert each.output == evaluation.result("few", direction).hypotheses[line]
        assert each.baseline == evaluation.result("full", direction).hypotheses[line]


def test_another_baseline(evaluation, test_text, detectors, summary):
    found = summarise(evaluation, test_text, detectors=detectors, baseline="half")
    assert (found.baseline, found["half"].verdict, found["full"].baseline) == ("half", None, "half")
    expected = summary["full"].figure("chrf").value - summary["half"].figure("chrf").value
    assert found["full"].figure("chrf").change.value == pytest.approx(expected)


def test_fewer_than_twenty_sentences_are_never_simply_accepted(
    mini, mini_tokenizer, test_text, configurations, tmp_path
):
    pair = {name: configurations[name] for name in ("full", "every")}
    for sentences, outcome, reasons in (
        (19, "accepted with warnings", ["19 sentences a direction"]),
        (20, "accepted", []),
    ):
        options = {"folder": tmp_path, "measuring": SCORES_ONLY, "sentences": sentences}
        found = evaluate(mini, mini_tokenizer, test_text, [("eng_Latn", "deu_Latn")], pair, **options)
        verdict = summarise(found, test_text, detectors=())["every"].verdict
        assert verdict.outcome == outcome
        assert [reason.split(" are too few")[0] for reason in verdict.reasons] == reasons


def test_limits_decide(evaluation, test_text, detectors):
    lax = dict.fromkeys(LIMITS, (1000.0, 2000.0))
    found = summarise(evaluation, test_text, detectors=detectors, limits=lax)
    assert found["few"].verdict.outcome == "accepted"
    assert found.limits == lax


def test_another_seed_and_other_resamples(evaluation, test_text, detectors, summary):
    testing = comparing.Testing(resamples=100, seed=1)
    other = summarise(evaluation, test_text, detectors=detectors, testing=testing)
    again = summarise(evaluation, test_text, detectors=detectors, testing=testing)
    assert other == again
    assert other["half"].figure("chrf").value == summary["half"].figure("chrf").value
    assert other["half"].figure("chrf").low != summary["half"].figure("chrf").low


def test_directions_are_taken_one_at_a_time(evaluation, test_text, detectors, directions):
    seen = []
    summarise(evaluation, test_text, detectors=detectors, progress=lambda each: seen.extend(each) or each)
    assert seen == list(directions)


def test_a_baseline_that_is_no_configuration_is_refused(evaluation, test_text):
    with pytest.raises(UsageError, match="`baseline` must be one of full, every, half, few, but is dense instead"):
        summarise(evaluation, test_text, detectors=(), baseline="dense")
    with pytest.raises(UsageError, match="`baseline` must be one of no configuration, but is full instead"):
        summarise(replace(evaluation, digests={}), test_text, detectors=())
