import random

import pytest

from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.corpus import ParallelText
from nllb_prune.generation.translate import translations
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.planning.plan import plan


@pytest.fixture(scope="session")
def model():
    return load_model("mini")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="session")
def text():
    return ParallelText.open(embedded_text(), "test")


@pytest.fixture(scope="session")
def masks(model, tokenizer, tmp_path_factory):
    """A quarter of the experts of each of the ten languages."""
    dev = ParallelText.open(embedded_text(), "dev")
    ring = [(code, dev.languages[(n + 1) % len(dev.languages)]) for n, code in enumerate(dev.languages)]
    counted = calibrate(model, tokenizer, dev, ring, sentences=30, folder=tmp_path_factory.mktemp("statistics"))
    return plan(counted, kept=0.25, ratio="1:1")


@pytest.fixture(scope="session")
def requests(text):
    """(sentence, source, target) in random directions."""
    chance = random.Random(5)
    found = []
    for _ in range(240):
        source, target = chance.sample(text.languages, 2)
        found.append((chance.choice(text.lines(source)[:200]), source, target))
    return found


@pytest.fixture(scope="session")
def offline(model, tokenizer, masks):
    """(requests, search) -> the best translation of each, found alone."""

    def alone(requests, **named):
        found = []
        for sentence, source, target in requests:
            [best] = translations(
                model, tokenizer, [sentence], source=source, target=target, masks=masks, rows=1, **named
            )
            found.append(best)
        return found

    return alone


@pytest.fixture(scope="session")
def alone(requests, offline):
    return offline(requests)
