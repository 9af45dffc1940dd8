"""Results of an evaluation as they might be: ten languages, 3 + 3 sparse layers of 64 experts, 30 directions."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from nllb_prune.calibration.statistics import ExpertStatistics, empty_table
from nllb_prune.evaluation.fidelity.fidelity import MEASURES
from nllb_prune.evaluation.summary.groups import group_names, groups_of
from nllb_prune.evaluation.summary.summary import (
    Change,
    ConfigurationSummary,
    DirectionSummary,
    Example,
    Figure,
    GroupSummary,
    Summary,
)
from nllb_prune.evaluation.summary.verdict import judge
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


FLAGGED = {"oscillation": (0.004, 0.05), "repetition": (0.002, 0.30), "off-target": (0.012, 0.02), "empty": (0.0, 0.0)}
"""Of detectors: the rate of the full model, and what the growth of the length adds."""
BYTES = 40_000_000
LIMITS = {"mean_loss": (0.5, 2.0), "into_english_loss": (1.0, 3.0), "worst_loss": (3.0, 8.0), "bleu_loss": (1.0, 3.0)}
LIMITS |= {"length_change": (0.03, 0.10), "rate_rise": (0.01, 0.03)}
SIGNATURES = {
    "chrf": ("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.5.1",),
    "bleu": tuple(f"nrefs:1|case:mixed|eff:no|tok:{tokenizer}|smooth:exp|version:2.5.1" for tokenizer in ("13a", "zh")),
    **{name: (f"{name}|t:2|version:1",) for name in FLAGGED},
}


def make_summary(
    directions=DIRECTIONS, effects=EFFECTS, *, plans=PLANS, kept=None, sentences=400, spbleu=False, model="mini"
) -> Summary:
    """What an evaluation might say, from a fixed seed; `kept` is by configuration, a quarter for those that prune."""
    random = np.random.default_rng(11)
    level = {code: 58 - 2.2 * (n % 14) for n, code in enumerate(dict.fromkeys(d[0] for d in directions))}
    base = [0.5 * (level[s] + level[t]) - 12 * (t == "zho_Hans") + random.normal(0, 1.5) for s, t in directions]
    shares = {name: 1.0 if name in ("full", "dense") else 0.25 for name in effects} | (kept or {})
    full = [_direction(*pair, chrf, random, (0.0, 0.0), 1.0) for pair, chrf in zip(directions, base, strict=True)]
    signatures = SIGNATURES | ({"spbleu": ("nrefs:1|case:mixed|eff:no|tok:flores200|version:2.5.1",)} if spbleu else {})
    found = []
    for name, effect in effects.items():
        each = full if name == "full" else [
            _direction(*pair, chrf, random, effect, shares[name]) for pair, chrf in zip(directions, base, strict=True)
        ]  # fmt: skip
        each = [_scored(d, spbleu) for d in each]
        plan = plans.get(name) and _plan(plans[name], shares[name])
        before = [_scored(d, spbleu) for d in full]
        found.append(_configuration(name, each, before, plan or {}, shares[name], sentences=sentences))
    return Summary(
        model=model,
        configurations=tuple(found),
        baseline="full",
        sentences=sentences,
        beams=1,
        test={"name": "paired randomisation", "resamples": 1000, "trials": 10_000, "seed": 12345},
        signatures=signatures,
        signatures_by_target=_by_target(signatures, directions),
        limits=LIMITS,
        versions={"nllb-prune": "0.1.0", "sacrebleu": "2.5.1"},
    )


def _by_target(signatures, directions):
    """BLEU is by characters for Chinese."""
    targets = dict.fromkeys(target for _, target in directions)
    chosen = {name: dict.fromkeys(targets, signatures[name][0]) for name in ("chrf", "spbleu") if name in signatures}
    words, characters = signatures["bleu"]
    return chosen | {"bleu": {code: characters if code == "zho_Hans" else words for code in targets}}


def _plan(options, kept):
    encoder, decoder = map(float, options["ratio"].split(":"))
    experts = round(kept * 384 / 3 / (encoder + decoder) * encoder)
    counts = {"encoder": [experts] * 3, "decoder": [round(kept * 128) - experts] * 3}
    return {
        "granularity": options.get("granularity", "language"),
        "criterion": options.get("criterion", "importance"),
        "ratio": {"encoder": encoder, "decoder": decoder},
        "signature": f"sha256:{options}",
        "kept_experts": sum(map(sum, counts.values())),
        "counts": counts,
    }


def _direction(source, target, chrf, random, effect, kept):
    loss, growth = effect
    noise = random.normal(0, 0.25 + 0.2 * abs(loss)) if loss else 0.0
    into = target == "eng_Latn"
    length = 1 + growth * (2.2 if into else 0.5) + random.normal(0, 0.012 + 0.2 * abs(growth))
    figures = {
        "chrf": chrf + loss * (1.4 if into else 0.8) + noise,
        "bleu": 0.55 * chrf + loss * (1.8 if into else 0.6) - 4 + noise,
        "length_ratio": length,
        "over_2": max(0.0, 0.01 + 0.05 * growth),
        "under_half": 0.004,
        "repeat_rate_4": max(0.0, 0.021 + 0.09 * growth + random.normal(0, 0.002)),
        **{name: max(0.0, rate + rise * growth) for name, (rate, rise) in FLAGGED.items()},
        "any": max(0.0, 0.015 + 0.35 * growth),
    }
    return DirectionSummary(source, target, kept, figures, {})


def _scored(direction, spbleu):
    more = {"spbleu": direction.figures["bleu"] + 3.0} if spbleu else {}
    return replace(direction, figures={**direction.figures, **more})


def _change(value, width):
    certain = abs(value) > width
    return Change(value, value - width, value + width, *((1 / 1001, 0.002) if certain else (0.21, 0.3)))


def _configuration(name, directions, baseline, plan, kept, *, sentences):
    full = name == "full"
    if not full:
        directions = [_compared(d, b) for d, b in zip(directions, baseline, strict=True)]
    groups = tuple(
        _group(group, directions, baseline, compared=not full)
        for group in group_names((d.source, d.target) for d in directions)
    )
    judged = None if full else judge(groups, directions, detectors=tuple(FLAGGED), limits=LIMITS, sentences=sentences)
    fidelity = dict(zip(MEASURES, (0.08, 0.2, 0.0004, 0.03, 0.07, 0.91), strict=True))
    return ConfigurationSummary(
        name=name,
        baseline=None if full else "full",
        kept=kept,
        weight_bytes=int(BYTES * (0.2 + 0.8 * kept)),
        plan=plan,
        groups=groups,
        directions=tuple(directions),
        fidelity=None if name in ("full", "dense") else fidelity,
        examples=() if name in ("full", "dense") else EXAMPLES,
        verdict=judged,
    )


def _compared(direction, baseline):
    names = [name for name in ("chrf", "bleu", "spbleu", "length_ratio") if name in direction.figures]
    changes = {
        name: _change(direction.figures[name] - baseline.figures[name], 0.03 if name == "length_ratio" else 0.8)
        for name in names
    }
    return replace(direction, changes=changes)


def _group(group, directions, baseline, *, compared):
    chosen = [n for n, d in enumerate(directions) if group in groups_of((d.source, d.target))]
    figures = {}
    for name in directions[0].figures:
        width = 0.3 if name in ("chrf", "bleu", "spbleu") else 0.004
        value, before = (float(np.mean([each[n].figures[name] for n in chosen])) for each in (directions, baseline))
        change = _change(value - before, width) if compared else None
        figures[name] = Figure(value, max(0.0, value - 2 * width), value + 2 * width, change)
    return GroupSummary(group, len(chosen), figures)


EXAMPLES = (
    Example(
        "eng_Latn", "arb_Arab", 12, "wake me up at five", "أيقظني في الخامسة", "أيقظني الساعة الخامسة",
        "الساعة الساعة الساعة الساعة", 12.3, 61.0, ("oscillation", "repetition"),
    ),
    Example("hin_Deva", "eng_Latn", 3, "संगीत बजाओ", "play <b>music</b>", "play music", "play " * 300, 4.0, 100.0, ()),
)  # fmt: skip


def make_inputs() -> SimpleNamespace:
    """The summary, the statistics and the masks by configuration, the names of all and how to make other statistics."""
    statistics = make_statistics()
    masks = {name: plan(statistics, kept=0.25, model_name="mini", **options) for name, options in PLANS.items()}
    summary = make_summary()
    scored = tuple(
        replace(c, plan={**c.plan, "signature": masks[c.name].signature}) if c.name in masks else c
        for c in summary.configurations
    )
    return SimpleNamespace(
        summary=replace(summary, configurations=scored),
        make_summary=make_summary,
        statistics=statistics,
        masks=masks,
        names=tuple(EFFECTS),
        make_statistics=make_statistics,
    )


@pytest.fixture(scope="session")
def inputs() -> SimpleNamespace:
    return make_inputs()
