"""Asking a translator, and comparing its answers with those of a model alone."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from nllb_prune import Translator, UsageError

NEAR_TIE = 1e-4
"""Of log-probabilities in float32: rows of another batch are summed in another order."""
ENG_DEU = ("eng_Latn", "deu_Latn")


def least_memory(masks, model="mini", **settings):
    """Return the bytes of which a translator says that it needs them."""
    with pytest.raises(UsageError, match="or more") as told:
        Translator(model, masks, memory=1, **settings)
    return int(str(told.value).split("(")[1].split(" ")[0])


def answers(translator, requests, *, threads=16, **named):
    """Ask from many threads at once."""

    def ask(request):
        sentence, source, target = request
        return translator.translate([sentence], source, target, whole=True, **named)[0]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, requests))


def same(found, expected, *, share=0.999):
    """Require equal texts, but for near-ties: another translation whose log-probability differs by rounding alone."""
    different = 0
    for ours, theirs in zip(found, expected, strict=True):
        [sentence] = ours.sentences
        if ours.text != theirs[0].text:
            different += 1
            assert sentence[0].score == pytest.approx(theirs[0].score, abs=NEAR_TIE)
        else:
            assert sentence[0].log_probability == pytest.approx(theirs[0].log_probability, abs=NEAR_TIE)
    assert different <= (1 - share) * len(expected) + 1


def wait_for(done, *, seconds):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def dropped(translator):
    """Require that all that was given up just now is gone after the step under way."""
    steps = translator.figures().steps
    wait_for(lambda: translator.figures().waiting == 0, seconds=20)
    assert translator.figures().steps <= steps + 1
