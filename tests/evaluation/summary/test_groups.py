import pytest

from nllb_prune.evaluation.summary.groups import group_names, groups_of


@pytest.mark.parametrize(
    ("direction", "groups"),
    [
        (("eng_Latn", "deu_Latn"), ("all", "out of English")),  # German has no published class
        (("eng_Latn", "rus_Cyrl"), ("all", "out of English", "high → high")),
        (("wol_Latn", "eng_Latn"), ("all", "into English", "very low → high")),
        (("tam_Taml", "ace_Latn"), ("all", "without English", "low → very low")),
        (("deu_Latn", "spa_Latn"), ("all", "without English")),
    ],
)
def test_groups_of_a_direction(direction, groups):
    assert groups_of(direction) == groups


def test_group_names_come_in_a_fixed_order():
    directions = [("ace_Latn", "tam_Taml"), ("rus_Cyrl", "eng_Latn"), ("eng_Latn", "wol_Latn")]
    expected = ("all", "out of English", "into English", "without English", "high → high", "high → very low")
    assert group_names(directions) == (*expected, "very low → low")
    assert group_names(reversed(directions)) == group_names(directions)
