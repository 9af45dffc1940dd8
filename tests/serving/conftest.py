import random
import shutil

import pytest

from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.corpus import ParallelText
from nllb_prune.generation.translate import translations
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import embedded_text, load_tokenizer, model_folder
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
def counted(model, tokenizer, tmp_path_factory):
    dev = ParallelText.open(embedded_text(), "dev")
    ring = [(code, dev.languages[(n + 1) % len(dev.languages)]) for n, code in enumerate(dev.languages)]
    return calibrate(model, tokenizer, dev, ring, sentences=30, folder=tmp_path_factory.mktemp("statistics"))


@pytest.fixture(scope="session")
def masks(counted):
    """A quarter of the experts of each of the ten languages."""
    return plan(counted, kept=0.25, ratio="1:1")


@pytest.fixture(scope="session")
def fewer(counted):
    """Other masks of the same languages, which mostly give other translations."""
    return plan(counted, kept=0.06, ratio="1:1")


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

    def alone(requests, masks=masks, **named):
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


@pytest.fixture
def mini_on_disk(tmp_path):
    """A copy of the model that may be damaged."""
    return shutil.copytree(model_folder("mini"), tmp_path / "model", ignore=shutil.ignore_patterns("text"))
