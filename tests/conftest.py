import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the models are tiny, threads only add noise
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from nllb_prune.cli import main
from nllb_prune.languages import language_set
from nllb_prune.model.spec import Stack

# How long an example takes is up to what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LAYERS = (3, 7, 11, 15, 19, 23)
NLLB_MOE = (Stack("encoder", "source", LAYERS, 128), Stack("decoder", "target", LAYERS, 128))
KEPT = {"encoder": 36, "decoder": 12}
# Weights of what all languages and what those of a group have in common: about as similar as in the published index.
COMMON = {"encoder": (2.0, 0.9), "decoder": (1.0, 1.3)}


def make_published_index(seed=0):
    """An index in the published form, random: 36 experts of each encoder and 12 of each decoder layer by language."""
    random, codes = np.random.default_rng(seed), language_set("nllb-202").codes
    group = random.integers(0, 14, size=len(codes))
    index, first = {code: [] for code in codes}, 0
    for stack in NLLB_MOE:
        of_all, of_group = COMMON[stack.name]
        for _ in stack.layers:
            scores = of_all * random.normal(size=128) + of_group * random.normal(size=(14, 128))[group]
            scores += random.normal(size=scores.shape)  # (languages, experts)
            best = np.sort(np.argsort(-scores, axis=1)[:, : KEPT[stack.name]], axis=1)
            for code, ids in zip(codes, best, strict=True):
                index[code] += (first + ids).tolist()
            first += stack.experts
    return index


@pytest.fixture(scope="session")
def nllb_moe_stacks():
    return NLLB_MOE


@pytest.fixture(scope="session")
def published_index():
    return make_published_index()


@pytest.fixture
def cli(capfd):
    def call(*arguments):
        capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def works(cli):
    def call(*arguments):
        status, out, err = cli(*arguments)
        assert status == 0, err
        return out

    return call
