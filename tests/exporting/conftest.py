import random

import pytest

from nllb_prune import load_model, load_spec, load_tokenizer
from nllb_prune.masks import MaskSet

LANGUAGES = ("arb_Arab", "deu_Latn", "eng_Latn", "hin_Deva", "spa_Latn")


def random_masks(spec, *, seed=0, languages=LANGUAGES, name="mini"):
    """Masks of each language, another number of experts in every layer and side."""
    drawn = random.Random(seed)

    def mask(stack):
        return [sorted(drawn.sample(range(stack.experts), drawn.randint(6, 30))) for _ in stack.layers]

    return MaskSet(
        model_name=name,
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="language",
        masks={stack.name: {code: mask(stack) for code in languages} for stack in spec.stacks},
        plan={"criterion": "random", "kept_experts": 96},
    )


@pytest.fixture(scope="session")
def mini():
    return load_model("mini")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="session")
def masks():
    return random_masks(load_spec("mini"))


@pytest.fixture(scope="session")
def make_masks():
    return random_masks
