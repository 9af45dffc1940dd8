"""Masks with records as planning by a measure writes them: one by hand, one of 202 languages, one by a fake measure."""

from dataclasses import asdict, replace

import pytest

from nllb_prune.languages import all_languages
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.planning.measured import Decisions, Tolerances, plan_measured
from nllb_prune.report.page import render

STACKS = (Stack("encoder", "source", (1, 3), 8), Stack("decoder", "target", (1, 3), 8))
QUIET = dict.fromkeys(("loss_change", "end_loss_change", "early_change", "late_change"), 0.0)
SILENT = QUIET | {"length_change": 0.0, "runaway_change": 0.0}
TEXT = {"directions": 2, "sentences": 16, "decoded": 8, "skipped": 100, "lines": 900, "text": {"a": "1", "b": "2"}}


def made_masks(sizes, *, stacks=STACKS, granularity="language", **plan):
    """Masks that keep so many experts, by stack and key, in two equal layers."""
    masks = {
        stack.name: {key: (tuple(range(size // 2)),) * 2 for key, size in sizes[stack.name].items()} for stack in stacks
    }
    fingerprint = Fingerprint.of(stacks, [1.0] * sum(stack.total for stack in stacks))
    return MaskSet(
        model_name="model",
        fingerprint=fingerprint,
        stacks=stacks,
        granularity=granularity,
        masks=masks,
        plan=plan,
    )


def told(planned, kept, *, passed=True, **figures):
    return {"planned": planned, "kept": kept, "figures": SILENT | figures, "passed": passed}


def told_direction(*, passed=True, **figures):
    return {"figures": SILENT | figures, "passed": passed}


def told_round(stage, directions, over, added):
    return {"stage": stage, "directions": directions, "over": over, "added": added}


def hand_made_record():
    """German grew in the decoder and passed, English grew and fails for a direction; French is not in the text."""
    return {
        "tolerances": asdict(Tolerances()),
        "reserve": {"experts": 2},
        "measures": {"calls": 7, "directions": 1200},
        "rounds": [
            told_round("encoder", 2, {}, {}),
            told_round("decoder", 2, {"decoder/deu_Latn": 2.0}, {"decoder/deu_Latn": 2}),
            told_round("decoder", 1, {}, {}),
            told_round("pair", 2, {"decoder/eng_Latn": 1.5}, {"decoder/eng_Latn": 2}),
            told_round("pair", 1, {"decoder/eng_Latn": 1.2}, {}),
            told_round("translations", 2, {}, {}),
        ],
        "masks": {
            "encoder": {
                "deu_Latn": told(4, 4, length_change=-0.024),
                "eng_Latn": told(4, 4, loss_change=0.03),
            },
            "decoder": {
                "deu_Latn": told(4, 6, loss_change=0.075, early_change=-0.001),
                "eng_Latn": told(4, 6, loss_change=0.12, passed=False),
            },
        },
        "directions": {
            "deu_Latn-eng_Latn": told_direction(passed=False, loss_change=0.18, late_change=0.01),
            "eng_Latn-deu_Latn": told_direction(loss_change=0.09, length_change=-0.5),
        },
        "failed": ["decoder/eng_Latn"],
    }


RATIO_SEARCH = {
    "measures": 3,
    "curve": [
        {
            "experts": {"encoder": encoder, "decoder": 32 - encoder},
            "loss_change": loss,
            "worst": {"direction": worst, "loss_change": 2 * loss},
        }
        for encoder, loss, worst in (
            (4.0, 0.2, "deu_Latn-eng_Latn"), (10.0, 0.04321, "eng_Latn-deu_Latn"), (28.0, 1.5, "deu_Latn-eng_Latn"),
        )
    ],
    "chosen": {"encoder": 10.0, "decoder": 22.0},
}  # fmt: skip
LANGUAGE_SEARCH = {
    "measures": 14,
    "curve": [
        {"experts": {"encoder": encoder, "decoder": 32 - encoder}, "alone": {"encoder": first, "decoder": second}}
        for encoder, first, second in ((4.0, 0.2, 0.01), (10.0, 0.1, 0.02), (28.0, 0.05, 0.6))
    ],
    "shared": {"encoder": 10.0, "decoder": 22.0},
    "loss_change": {"per_language": 0.09, "shared": 0.11},
    "chosen": "per_language",
    "languages": {
        "deu_Latn": {"encoder": 12, "decoder": 20, "expected_loss_change": 0.08},
        "eng_Latn": {"encoder": 8, "decoder": 24, "expected_loss_change": 0.1},
    },
}
LAYER_SEARCH = {
    "measures": 18,
    "rounds": [
        {
            "counts": {"encoder": [2.0, 2.0], "decoder": [5.0, 5.0]},
            "before": 0.0788,
            "after": 0.0302,
            "marginal": {
                "encoder": [{"fewer": 0.0, "more": -0.0004}, {"fewer": 0.0, "more": -0.0014}],
                "decoder": [{"fewer": 0.0504, "more": -0.0378}, {"fewer": 0.0081, "more": -0.0007}],
            },
        },
        {
            "counts": {"encoder": [2.0, 2.0], "decoder": [7.5, 2.5]},
            "before": 0.0302,
            "after": 0.04,
            "marginal": {
                "encoder": [{"fewer": 0.0, "more": -0.0001}] * 2,
                "decoder": [{"fewer": 0.02, "more": -0.001}] * 2,
            },
        },
    ],
    "chosen": {"counts": {"encoder": [2.0, 2.0], "decoder": [7.5, 2.5]}, "loss_change": 0.0302},
}


def many_languages_record():
    """202 languages, six sources a target: every third target fails and grew, of the others every second grew."""
    codes = [each.code for each in all_languages()]
    masks = {"encoder": {code: told(48, 48) for code in codes}, "decoder": {}}
    directions, over = {}, {}
    for n, code in enumerate(codes):
        loss = 0.2 + n / 1000 if n % 3 == 0 else 0.1
        masks["decoder"][code] = told(24, 30 if n % 3 == 0 or n % 2 == 0 else 24, passed=n % 3 != 0, loss_change=loss)
        for step in range(1, 7):
            source = codes[(n + step) % len(codes)]
            directions[f"{source}-{code}"] = told_direction(passed=n % 3 != 0, loss_change=loss)
        if n % 3 == 0:
            over[f"decoder/{code}"] = loss / 0.15
    failed = [f"decoder/{code}" for n, code in enumerate(codes) if n % 3 == 0]
    return hand_made_record() | {
        "masks": masks,
        "directions": directions,
        "failed": failed,
        "rounds": [told_round("decoder", 1212, over, dict.fromkeys(over, 6)), told_round("pair", 1212, over, {})],
        "reserve": {"experts": 6},
    }


SIZES = {
    "encoder": {"deu_Latn": 4, "eng_Latn": 4, "fra_Latn": 4},
    "decoder": {"deu_Latn": 6, "eng_Latn": 6, "fra_Latn": 4},
}


@pytest.fixture
def guarded():
    """Masks with the record that was made by hand; what is given replaces parts of it."""

    def call(**changes):
        return made_masks(SIZES, guard=hand_made_record() | changes, measured=TEXT)

    return call


@pytest.fixture
def guarded_pairs():
    """A mask for each direction: that of one grew in the decoder, that of the other failed."""
    record = hand_made_record()
    keys = tuple(record["directions"])
    masks = {
        "encoder": {key: told(4, 4, loss_change=0.01) for key in keys},
        "decoder": {keys[0]: told(4, 4, passed=False), keys[1]: told(4, 6)},
    }
    rounds = [told_round("pair", 2, {f"decoder/{key}": 1.5 for key in keys}, {f"decoder/{keys[1]}": 2})]
    rounds.append(told_round("pair", 1, {f"decoder/{keys[0]}": 1.2}, {}))
    guard = record | {"masks": masks, "rounds": rounds, "failed": [f"decoder/{keys[0]}"]}
    sizes = {stack: {key: each["kept"] for key, each in of.items()} for stack, of in masks.items()}
    return made_masks(sizes, granularity="pair", guard=guard, measured=TEXT)


@pytest.fixture
def guarded_decoder():
    """A model that is sparse in the decoder alone: nothing is measured of one stack by itself."""
    record = hand_made_record()
    lengths = {"length_change": 0.0, "runaway_change": 0.0}
    failing = told(4, 4, passed=False) | {"figures": lengths}
    masks = {"decoder": {"eng_Latn": failing, "deu_Latn": told(4, 4) | {"figures": lengths}}}
    rounds = [told_round("pair", 2, {"decoder/eng_Latn": 1.2}, {}), told_round("translations", 2, {}, {})]
    guard = record | {"masks": masks, "rounds": rounds}
    sizes = {"decoder": dict.fromkeys(masks["decoder"], 4)}
    return made_masks(sizes, stacks=STACKS[1:], guard=guard, measured=TEXT)


@pytest.fixture
def searched():
    """Masks with records of searches."""
    return {
        "ratio": made_masks(SIZES, ratio_search=RATIO_SEARCH),
        "language": made_masks(SIZES, ratio_search=LANGUAGE_SEARCH),
        "layers": made_masks(SIZES, layer_search=LAYER_SEARCH),
    }


@pytest.fixture(scope="session")
def of_202():
    record = many_languages_record()
    sizes = {stack: dict.fromkeys(each, 24) for stack, each in record["masks"].items()}
    stacks = tuple(replace(stack, experts=128) for stack in STACKS)
    return made_masks(sizes, stacks=stacks, guard=record, measured=TEXT)


class FakeMeasure:
    """Loses by what is missing: the decoder's experts matter more, its first layer most, English needs twice."""

    def __init__(self, directions):
        self.directions = tuple(directions)
        self.signature = {"directions": len(self.directions), "sentences": 4, "decoded": 4, "skipped": 0, "lines": 60}

    def losses(self, masks, directions):
        return {each: QUIET | {"loss_change": self._loss(masks, *each)} for each in directions}

    def translations(self, masks, directions):
        return {each: {"length_change": 0.01, "runaway_change": 0.0} for each in directions}

    def _loss(self, masks, source, target):
        need = {"encoder": (1, 1, 1), "decoder": (9, 3, 3)}
        lost = sum(
            weight * (1 - len(ids) / 64) ** 4
            for stack, mask in masks.direction(source, target).items()
            for weight, ids in zip(need[stack], mask, strict=True)
        )
        return lost / (20 if target == "eng_Latn" else 40)


@pytest.fixture(scope="session")
def planned(inputs):
    """Masks that planning made with a measure, of the ten languages."""
    codes = inputs.statistics.as_language().keys("encoder")
    measure = FakeMeasure((a, b) for n, a in enumerate(codes) for b in (codes[n - 1], codes[n - 4]))

    def call(*, granularity="language", **decisions):
        options = {} if decisions.get("ratio") else {"ratio": "3:1"}
        return plan_measured(
            inputs.statistics, measure, decisions=Decisions(**decisions), kept=0.25, granularity=granularity, **options
        )

    return call


@pytest.fixture
def page_of(inputs):
    """The page of an evaluation of such masks, by configuration."""

    def call(masks):
        summary = inputs.make_summary(effects={"full": (0.0, 0.0), **dict.fromkeys(masks, (-0.4, 0.0))}, plans={})
        return render(summary, statistics=None, masks=masks)

    return call
