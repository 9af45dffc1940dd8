"""Results of an evaluation as they might be: ten languages, 3 + 3 sparse layers of 64 experts, 30 directions."""

from types import SimpleNamespace

import numpy as np
import pytest

from nllb_prune.calibration.statistics import ExpertStatistics, empty_table
from nllb_prune.evaluation.significance import Comparison, Estimate
from nllb_prune.evaluation.summary import ConfigurationSummary, DirectionSummary, Summary
from nllb_prune.languages import language_set
from nllb_prune.model.spec import Fingerprint, ModelSpec, Stack
from nllb_prune.planning.plan import plan

LANGUAGES = language_set("mini").codes
OTHERS = LANGUAGES[1:]
DIRECTIONS = (
    *(("eng_Latn", code) for code in OTHERS),
    *((code, "eng_Latn") for code in OTHERS),
    *((OTHERS[n], OTHERS[(n + step) % 9]) for n, step in [*((n, 1) for n in range(9)), (0, 4), (3, 4), (6, 4)]),
)
# Languages that route alike: their logits share a part.
FAMILIES = (("spa_Latn", "por_Latn", "eng_Latn", "deu_Latn"), ("arb_Arab", "hin_Deva", "zho_Hans"))

PLANS = {
    "per-language": {"ratio": "3:1"},
    "global": {"ratio": "3:1", "granularity": "global"},
    "random": {"ratio": "3:1", "criterion": "random"},
    "frequency": {"ratio": "3:1", "criterion": "frequency"},
    "ratio-1-2": {"ratio": "1:2"},
    "ratio-1-1": {"ratio": "1:1"},
    "ratio-2-1": {"ratio": "2:1"},
}
# Loss of chrF++ and growth of the length that a configuration brings, before what is special to a direction.
EFFECTS = {
    "full": (0.0, 0.0),
    "dense": (-1.9, -0.01),
    "per-language": (-0.45, 0.05),
    "global": (-3.1, 0.09),
    "random": (-12.0, 0.35),
    "frequency": (-0.9, 0.06),
    "ratio-1-2": (-2.2, 0.02),
    "ratio-1-1": (-1.1, 0.03),
    "ratio-2-1": (-0.6, 0.04),
}


def make_statistics(*, norm: float = 1.0) -> ExpertStatistics:
    random = np.random.default_rng(7)
    stacks = (Stack("encoder", "source", (1, 3, 5), 64), Stack("decoder", "target", (1, 3, 5), 64))
    fingerprint = Fingerprint.of(stacks, [norm] * sum(stack.total for stack in stacks))
    spec = ModelSpec(family="nllb-moe", stacks=stacks, top_k=2, output_scale=0.8, fingerprint=fingerprint)
    tables = {}
    for stack in stacks:
        own = 1.3 if stack.name == "encoder" else 2.0
        shared = random.normal(scale=1.2, size=(3, 64))
        family = {code: random.normal(scale=1.1, size=(3, 64)) for code in LANGUAGES}
        for members in FAMILIES:
            family |= dict.fromkeys(members, random.normal(scale=1.1, size=(3, 64)))
        for code in LANGUAGES:
            logits = shared / own + family[code] + random.normal(scale=own, size=(3, 64))
            tables[stack.name, code] = _table(stack, np.exp(logits), tokens=int(random.integers(20_000, 30_000)))
    signature = {"mode": "references", "text": "a1b2c3d4e5f6"}
    return ExpertStatistics(spec, "language", tables, items=LANGUAGES, signature=signature)


def _table(stack, weights, *, tokens):
    shares = weights / weights.sum(axis=1, keepdims=True)
    table = empty_table(stack)
    table["tokens"][:] = tokens
    table["first"][:] = table["second"][:] = np.rint(shares * tokens)
    table["p_first"] += table["first"] * np.clip(0.3 + 2 * shares, 0, 0.95)
    table["p_second"] += 0.2 * table["second"]
    table["p_all"] += shares * tokens
    table["gate"] += shares * tokens
    return table


def _summary() -> Summary:
    random = np.random.default_rng(11)
    level = {code: 58 - 2.2 * n for n, code in enumerate(LANGUAGES)}
    base = [0.5 * (level[s] + level[t]) - 12 * (t == "zho_Hans") + random.normal(0, 1.5) for s, t in DIRECTIONS]
    found = {
        name: [_direction(name, s, t, chrf, random) for (s, t), chrf in zip(DIRECTIONS, base, strict=True)]
        for name in EFFECTS
    }
    signatures = {
        "chrF++": ("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.5.1",),
        "BLEU": tuple(
            f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:2.5.1" for tokenizer in ("13a", "zh")
        ),
    }
    configurations = tuple(_configuration(name, found[name], found["full"]) for name in EFFECTS)
    return Summary(configurations, "full", 400, signatures)


def _direction(name, source, target, chrf, random):
    loss, growth = EFFECTS[name]
    noise = 0.0 if name == "full" else random.normal(0, 0.25 + 0.2 * abs(loss))
    into = target == "eng_Latn"
    length = 1 + growth * (2.2 if into else 0.5) + random.normal(0, 0.012 + 0.2 * abs(growth))
    return DirectionSummary(
        source,
        target,
        kept=1.0 if name in ("full", "dense") else 0.25,
        chrf=chrf + loss * (1.4 if into else 0.8) + noise,
        bleu=0.55 * chrf + loss * (1.8 if into else 0.6) - 4,
        length_ratio=length,
        oscillating=max(0.0, 0.004 + 0.05 * growth),
        repeat_rate=max(0.0, 0.021 + 0.09 * growth + random.normal(0, 0.002)),
        long=max(0.0, 0.01 + 0.05 * growth),
    )


def _configuration(name, directions, baseline):
    if name == "full":
        return ConfigurationSummary(name, tuple(directions), None, None)
    gains = {d.direction: d.chrf - b.chrf for d, b in zip(directions, baseline, strict=True)}
    worst = min(gains, key=gains.__getitem__)
    difference = float(np.mean(list(gains.values())))
    system, reference = (float(np.mean([d.chrf for d in each])) for each in (directions, baseline))
    comparison = Comparison(
        "chrf",
        Estimate(system, system, 0.6),
        Estimate(reference, reference, 0.6),
        difference,
        low=difference - 0.31,
        high=difference + 0.29,
        p_value=0.031 if abs(difference) < 0.55 else 1 / 1001,
        directions=len(directions),
        sentences=400 * len(directions),
        resamples=1000,
        seed=12345,
    )
    return ConfigurationSummary(name, tuple(directions), comparison, (worst, gains[worst]))


def make_inputs() -> SimpleNamespace:
    """The summary, the statistics and the masks by configuration, the names of all and how to make other statistics."""
    statistics = make_statistics()
    masks = {name: plan(statistics, kept=0.25, model_name="mini", **options) for name, options in PLANS.items()}
    return SimpleNamespace(
        summary=_summary(),
        statistics=statistics,
        masks=masks,
        names=tuple(EFFECTS),
        make_statistics=make_statistics,
    )


@pytest.fixture(scope="session")
def inputs() -> SimpleNamespace:
    return make_inputs()
