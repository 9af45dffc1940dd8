"""What is said of weights, against numpy on the tensors of the checkpoint."""

import numpy as np
import pytest

from nllb_prune.calibration import weights
from nllb_prune.calibration.fields import fields_of
from nllb_prune.calibration.weights import weight_tables
from nllb_prune.model.routing import routing_of

LAYERS = {"encoder": (1, 3), "decoder": (1, 3)}


def expert(checkpoint, stack, layer, number):
    path = f"model.{stack}.layers.{layer}.ffn.experts.expert_{number}"
    return [checkpoint[f"{path}.{name}"].astype(float) for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")]


@pytest.fixture(scope="module")
def tables(tiny):
    return weight_tables(tiny)


@pytest.fixture(
    params=[(stack, n, layer) for stack, layers in LAYERS.items() for n, layer in enumerate(layers)], ids=str
)
def place(request):
    return request.param


def test_shapes(tables):
    assert set(tables) == set(LAYERS)
    for table in tables.values():
        assert set(table) == set(fields_of(["weights"]))
        assert all(values.shape == (2, 8) and values.dtype == np.float64 for values in table.values())


def test_layers_are_those_of_the_spec(tiny):
    assert {stack.name: stack.layers for stack in routing_of(tiny).spec.stacks} == LAYERS


def test_norms_and_similarity(tables, checkpoint, place):
    stack, number, layer = place
    flat = [np.concatenate([p.ravel() for p in expert(checkpoint, stack, layer, n)]) for n in range(8)]
    norms = [np.linalg.norm(each) for each in flat]
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in flat] for a in flat])
    np.testing.assert_allclose(tables[stack]["weight_norm"][number], norms, rtol=1e-4)
    others = cosines.sum(1) - 1
    np.testing.assert_allclose(tables[stack]["weight_similarity"][number], others, rtol=1e-4, atol=1e-5)
    router = checkpoint[f"model.{stack}.layers.{layer}.ffn.router.classifier.weight"].astype(float)
    np.testing.assert_allclose(tables[stack]["router_norm"][number], np.linalg.norm(router, axis=1), rtol=1e-4)


def test_stable_rank(tables, checkpoint, place):
    stack, number, layer = place
    for n in range(8):
        fc1, _, fc2, _ = expert(checkpoint, stack, layer, n)
        squared = [np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in (fc1, fc2)]
        expected = np.mean([s.sum() / s[0] for s in squared])
        np.testing.assert_allclose(tables[stack]["stable_rank"][number, n], expected, rtol=1e-4)


@pytest.mark.parametrize("columns", [1, 100, 1000])
def test_blocks_of_columns_do_not_matter(tiny, tables, monkeypatch, columns):
    monkeypatch.setattr(weights, "_COLUMNS", columns)
    for stack, table in weight_tables(tiny).items():
        for name, values in table.items():
            np.testing.assert_allclose(values, tables[stack][name], rtol=2e-5, atol=1e-6)


def test_five_digits(tables):
    for table in tables.values():
        for values in table.values():
            assert all(value == float(f"{value:.5g}") for value in values.flat)
