"""One small evaluation of `mini` for all tests that read results, and makers of masks and results."""

import random

import numpy as np
import pytest

from nllb_prune.corpus import ParallelText
from nllb_prune.evaluation.detectors import UNLIKELY
from nllb_prune.evaluation.detectors.flagging import fitted
from nllb_prune.evaluation.evaluate import evaluate
from nllb_prune.evaluation.measuring import Measuring, usual_measuring
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.scores.metrics import score
from nllb_prune.evaluation.scores.spbleu import find_spbleu
from nllb_prune.evaluation.scores.surface import measure
from nllb_prune.evaluation.summary.summarise import summarise
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.source import embedded_text, load_tokenizer, model_folder

DIRECTIONS = (
    ("eng_Latn", "deu_Latn"),
    ("deu_Latn", "eng_Latn"),
    ("spa_Latn", "eng_Latn"),
    ("eng_Latn", "zho_Hans"),
    ("hin_Deva", "deu_Latn"),
)
SENTENCES = 24


@pytest.fixture(scope="session")
def mini():
    return load_model("mini")


@pytest.fixture(scope="session")
def mini_tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="session")
def test_text():
    return ParallelText.open(embedded_text(), split="test")


@pytest.fixture(scope="session")
def directions():
    return DIRECTIONS


@pytest.fixture(scope="session")
def random_masks():
    """Makes masks that keep so many random experts of each layer, the same for every language."""
    spec = load_spec("mini")

    def make(kept, *, seed=0):
        drawn = random.Random(seed)
        layers = {
            stack.name: tuple(tuple(sorted(drawn.sample(range(stack.experts), kept))) for _ in stack.layers)
            for stack in spec.stacks
        }
        return MaskSet(
            model_name="mini",
            fingerprint=spec.fingerprint,
            stacks=spec.stacks,
            granularity="global",
            masks={name: {"*": each} for name, each in layers.items()},
        )

    return make


@pytest.fixture(scope="session")
def configurations(random_masks):
    """The full model; every expert as a mask; a random half; a random eighth, which over-generates."""
    return {"full": None, "every": random_masks(64), "half": random_masks(32), "few": random_masks(8, seed=7)}


@pytest.fixture(scope="session")
def measuring(mini_tokenizer):
    """Everything, and spBLEU with the pieces of `mini`."""
    spbleu = find_spbleu(model_folder("mini") / "sentencepiece.bpe.model")
    return Measuring(detectors=usual_measuring(mini_tokenizer).detectors, spbleu=spbleu)


@pytest.fixture(scope="session")
def evaluation(mini, mini_tokenizer, test_text, configurations, measuring, tmp_path_factory):
    return evaluate(
        mini,
        mini_tokenizer,
        test_text,
        DIRECTIONS,
        configurations,
        folder=tmp_path_factory.mktemp("evaluation"),
        measuring=measuring,
        sentences=SENTENCES,
    )


@pytest.fixture(scope="session")
def detectors(evaluation, measuring):
    return fitted(measuring.detectors, evaluation.of_configuration("full"))


@pytest.fixture(scope="session")
def summary(evaluation, test_text, detectors):
    return summarise(evaluation, test_text, detectors=detectors)


@pytest.fixture(scope="session")
def make_result():
    """Makes a result from hypotheses and references; `detections` are given."""

    def make(hypotheses, references, *, configuration="full", source="eng_Latn", target="deu_Latn", **fields):
        lines = len(hypotheses)
        detections = {name: np.array(each, np.float64) for name, each in fields.pop("detections", {}).items()}
        on_references = {name: np.array(each, np.float64) for name, each in fields.pop("on_references", {}).items()}
        return DirectionResult(
            configuration=configuration,
            source=source,
            target=target,
            kept=fields.pop("kept", 1.0),
            weight_bytes=fields.pop("weight_bytes", 4),
            hypotheses=tuple(hypotheses),
            mean_log_probabilities=-detections.get(UNLIKELY, np.ones(lines)),
            ended=np.ones(lines, np.bool_),
            scores=score(hypotheses, references, target=target),
            surface=measure(hypotheses, references, target=target),
            detections=detections,
            on_references=on_references,
            fidelity=fields.pop("fidelity", None),
        )

    return make


@pytest.fixture(scope="session")
def text_of():
    """Makes parallel text of lines by language, in a folder."""

    def make(folder, **lines):
        folder.mkdir(parents=True, exist_ok=True)
        for code, own in lines.items():
            (folder / f"{code}.txt").write_text("".join(f"{line}\n" for line in own), encoding="utf-8")
        return ParallelText.open(folder)

    return make
