import numpy as np

from nllb_prune.planning.protection import best_protected, super_experts


def test_the_best_of_each_layer():
    scores = np.array([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    chosen = best_protected(scores, np.ones((2, 3), dtype=bool), 1)
    assert chosen.tolist() == [[False, True, False], [True, False, False]]


def test_only_what_is_used():
    scores = np.array([[0.0, -3.0, 0.0, -1.0]])  # scores need not be 0 where an expert is never used
    used = np.array([[False, True, False, True]])
    assert best_protected(scores, used, 1).tolist() == [[False, False, False, True]]
    assert best_protected(scores, used, 3).tolist() == [[False, True, False, True]]


def test_super_experts_by_hand():
    largest = {"encoder": np.ones((2, 200)), "decoder": np.ones((2, 200))}
    largest["encoder"][0, 7] = 50.0
    largest["encoder"][1, 3] = 9.0  # above the percentile, below a tenth of the largest
    largest["decoder"][0, 5] = 100.0
    largest["decoder"][1, 9] = 80.0  # among the last quarter of the layers
    found = {stack: np.argwhere(each).tolist() for stack, each in super_experts(largest).items()}
    assert found == {"encoder": [[0, 7]], "decoder": [[0, 5]]}


def test_never_more_than_one_in_two_hundred():
    largest = {"encoder": np.random.default_rng(0).uniform(1, 2, size=(4, 100))}
    assert super_experts(largest)["encoder"].sum() <= 2


def test_a_quarter_of_the_layers_is_rounded_up():
    found = super_experts({"encoder": np.concatenate([np.full((6, 1), 9.0), np.zeros((6, 400))], axis=1)})["encoder"]
    assert found.any(axis=1).tolist() == [True] * 4 + [False] * 2
