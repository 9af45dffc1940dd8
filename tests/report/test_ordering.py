import numpy as np
import pytest

from nllb_prune.report.ordering import by_strongest_row, leaf_order, overlap_distance


def test_leaf_order_puts_clusters_side_by_side():
    places = np.array([0.0, 10.0, 0.5, 10.4, 5.0, 0.9])
    order = leaf_order(np.abs(places[:, None] - places))
    assert places[order].tolist() in (sorted(places), sorted(places, reverse=True))
    assert leaf_order(np.zeros((0, 0))) == []


def test_overlap_distance_is_of_shares():
    rows = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert overlap_distance(rows) == pytest.approx(np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]]))


def test_columns_are_grouped_by_their_strongest_row():
    values = np.array([[0.1, 0.9, 1.0, 0.0], [1.0, 0.2, 0.1, 0.3]])
    assert by_strongest_row(values).tolist() == [2, 1, 0, 3]
