from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from nllb_prune.calibration.statistics import ExpertStatistics, empty_table
from nllb_prune.model.spec import Fingerprint, ModelSpec, Stack

MINI = (Stack("encoder", "source", (1, 3, 5), 64), Stack("decoder", "target", (1, 3, 5), 64))
SMALL = (Stack("encoder", "source", (1, 3), 8), Stack("decoder", "target", (1, 3), 8))


def _spec(stacks, norm=1.0):
    fingerprint = Fingerprint.of(stacks, [norm] * sum(stack.total for stack in stacks))
    return ModelSpec(family="nllb-moe", stacks=stacks, top_k=2, output_scale=0.8, fingerprint=fingerprint)


def _table(stack, random, tokens):
    """Counts of tokens with random top-2 experts, some experts never chosen."""
    table = empty_table(stack)
    table["tokens"][:] = tokens
    for layer in range(len(stack.layers)):
        logits = random.normal(size=(tokens, stack.experts)) + random.normal(scale=2, size=stack.experts)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        order = np.argsort(-p, axis=1, kind="stable")
        for rank, count in enumerate(("first", "second")):
            chosen = order[:, rank]
            table[count][:, layer] = np.bincount(chosen, minlength=stack.experts)
            table[f"p_{count}"][:, layer] = np.bincount(chosen, p[np.arange(tokens), chosen], stack.experts)
        table["p_all"][:, layer] = p.sum(axis=0)
        best = np.take_along_axis(p, order[:, :2], axis=1)
        for rank, gates in enumerate((best / best.sum(axis=1, keepdims=True)).T):
            table["gate"][:, layer] += np.bincount(order[:, rank], gates, stack.experts)
    return table


def _statistics(stacks=SMALL, *, languages=("aaa", "bbb", "ccc"), granularity="pair", seed=0):
    random, spec = np.random.default_rng(seed), _spec(stacks)
    directions = [f"{source}-{target}" for source, target in permutations(languages, 2)]
    tables = {
        (stack.name, direction): _table(stack, random, int(random.integers(5, 60)))
        for direction in directions
        for stack in stacks
    }
    pairs = ExpertStatistics(spec, "pair", tables, items=tuple(directions), signature={"mode": "references"})
    return pairs if granularity == "pair" else pairs.as_language()


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ModelSpec]:
    return _spec


@pytest.fixture(scope="session")
def make_statistics() -> Callable[..., ExpertStatistics]:
    """Random statistics of every direction between three languages."""
    return _statistics


@pytest.fixture(scope="session")
def mini_stacks():
    return MINI


@pytest.fixture(scope="session")
def small_stacks():
    return SMALL
