"""Tolerances: texts, and which figure is worst."""

import math

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.planning.measured import Tolerances, parse_tolerances
from nllb_prune.planning.measured.tolerances import NAMES

ALL = "loss_change, end_loss_change, early_change, late_change, length_change, runaway_change, detached_change"


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("loss_change=0.1", {"loss_change": 0.1}),
        ("loss_change=0.1,length_change=0.05", {"loss_change": 0.1, "length_change": 0.05}),
        (" loss_change = 1 , runaway_change=2e-2 ", {"loss_change": 1.0, "runaway_change": 0.02}),
        (",".join(f"{name}=0.5" for name in NAMES), dict.fromkeys(NAMES, 0.5)),
    ],
)
def test_what_is_not_named_keeps_its_default(text, changed):
    assert parse_tolerances(text) == Tolerances(**changed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "loss_change",
        "loss_change=",
        "loss_change=low",
        "loss_change=0",
        "loss_change=-0.1",
        "loss_change=nan",
        "loss=0.1",
        "loss_change=0.1,",
        "loss_change=0.1;length_change=0.2",
        "=0.1",
        "excess=1",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError) as error:
        parse_tolerances(text)
    assert str(error.value) == (
        f"`tolerances` must be like loss_change=0.1,length_change=0.05, of {ALL}, but is {text} instead."
    )


@pytest.mark.parametrize("value", [0, -1.0, math.nan, True, "0.1", None])
def test_values_that_are_none(value):
    with pytest.raises(UsageError) as error:
        Tolerances(late_change=value)
    assert str(error.value) == f"`tolerances/late_change` must be a number above 0, but is {value} instead."


HALF = Tolerances(**dict.fromkeys(NAMES, 0.5))


@pytest.mark.parametrize(
    ("name", "value", "excess"),
    [
        ("loss_change", 0.25, 0.5),
        ("loss_change", 1.0, 2.0),
        ("loss_change", -1.0, 0.0),
        ("end_loss_change", -1.0, 0.0),
        ("early_change", -1.0, 0.0),
        ("late_change", -1.0, 0.0),
        ("runaway_change", -1.0, 0.0),
        ("length_change", 1.0, 2.0),
        ("length_change", -1.0, 2.0),  # shorter is as bad as longer
        ("length_change", math.nan, 0.0),
        ("early_change", math.nan, 0.0),
    ],
)
def test_figures_in_units_of_their_tolerance(name, value, excess):
    assert HALF.excess(name, value) == excess


def test_the_worst_is_against_its_own_tolerance():
    tolerances = Tolerances(loss_change=1.0, late_change=0.1)
    assert tolerances.worst({"loss_change": 0.5, "late_change": 0.2, "early_change": 0.0}) == (2.0, "late_change")
    assert tolerances.worst({"loss_change": 3.0, "late_change": 0.2}) == (3.0, "loss_change")
    assert tolerances.worst({"length_change": math.nan, "runaway_change": 0.0})[0] == 0.0


def test_a_record_is_read_and_names_that_are_none_are_refused():
    recorded = dict.fromkeys(NAMES, 0.5)
    assert Tolerances.of(recorded) == Tolerances(**recorded)
    assert Tolerances.of({"loss_change": 0.5}) == Tolerances(loss_change=0.5)
    with pytest.raises(UsageError) as error:
        Tolerances.of({**recorded, "size_change": 0.5})
    assert str(error.value) == f"`tolerances` must be of {ALL}, but has size_change."
