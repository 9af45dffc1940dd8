"""How differently each layer routes a language and a reference language: weights for layer budgets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nllb_prune.planning.evidence import FloatArray

_LEAST = 1e-12  # layers that route both alike still get slots, after all others


def jensen_shannon(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the divergence, in bits, of each row's distribution from that of the other array: (rows, n) -> (rows,)."""
    p, q = _shares(a), _shares(b)
    middle = (p + q) / 2
    return np.asarray((_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)


def _shares(mass: FloatArray) -> FloatArray:
    """Return each row divided by its sum; a row without mass stays as it is."""
    whole = mass.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(mass, whole, out=np.zeros_like(mass), where=whole > 0))


def _relative_entropy(p: FloatArray, q: FloatArray) -> FloatArray:
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log2(ratio)).sum(axis=1))


def layer_weights(masses: Mapping[str, FloatArray], reference: str) -> dict[str, FloatArray]:
    """Return the weight of each layer for each language: its divergence from the reference language.

    The reference itself, which diverges from nothing, gets the mean of the others.

    Args:
        masses: routing mass (layers, experts) of each language, the reference among them.
        reference: a language.
    """
    others = {
        language: np.maximum(jensen_shannon(mass, masses[reference]), _LEAST)
        for language, mass in masses.items()
        if language != reference
    }
    mean = np.mean(list(others.values()), axis=0) if others else np.ones(len(masses[reference]))
    return {**others, reference: mean}
