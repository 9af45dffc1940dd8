import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nllb_prune.planning.divergence import jensen_shannon, layer_weights


def test_by_hand():
    same, apart, half = [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]
    found = jensen_shannon(np.array([same, apart, same]), np.array([same, half, apart]))
    # of (1/2, 1/2) and (1, 0): H(3/4, 1/4) - H(1/2, 1/2) / 2
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    np.testing.assert_allclose(found, [0.0, 1.0, entropy - 0.5])


@given(*[arrays(np.float64, (2, 4), elements=st.sampled_from([0.0, 0.1, 1.0, 7.0]))] * 2)
def test_symmetric_and_within_a_bit(a, b):
    found = jensen_shannon(a, b)
    np.testing.assert_allclose(found, jensen_shannon(b, a), atol=1e-12)
    assert ((found >= -1e-12) & (found <= 1 + 1e-12)).all()


def test_the_reference_gets_the_mean_of_the_others():
    masses = {
        "eng": np.array([[1.0, 0.0], [1.0, 0.0]]),
        "deu": np.array([[0.0, 1.0], [1.0, 0.0]]),
        "fra": np.array([[1.0, 0.0], [1.0, 0.0]]),
    }
    weights = layer_weights(masses, "eng")
    np.testing.assert_allclose(weights["deu"], [1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(weights["eng"], [0.5, 0.0], atol=1e-9)
    assert all((each > 0).all() for each in weights.values())
    assert layer_weights({"eng": masses["eng"]}, "eng")["eng"].tolist() == [1.0, 1.0]


def test_scale_does_not_matter():
    a, b = np.array([[1.0, 3.0]]), np.array([[2.0, 2.0]])
    assert jensen_shannon(a, b) == pytest.approx(jensen_shannon(10 * a, b))
