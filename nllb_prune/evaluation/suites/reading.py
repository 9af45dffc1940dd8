"""Suites from TOML, every key and value checked: a mistake is one line that names it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, get_args

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.suites.records import (
    CalibrationWanted,
    DenseWanted,
    Given,
    GivenKind,
    ModelWanted,
    Planned,
    Suite,
    TextKind,
    TextWanted,
)
from nllb_prune.languages import language_set_names
from nllb_prune.planning.criteria import CRITERIA
from nllb_prune.planning.members import Aggregation
from nllb_prune.planning.scopes import SCOPES
from nllb_prune.planning.settings import BUDGETS, BudgetFor, PlanGranularity

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+:%-]*")  # names folders of results
_RESERVED = ("full", "dense")
_NUMBER: tuple[type, ...] = (int, float)

_PLAN: Mapping[str, tuple[type, ...]] = {
    "kept": _NUMBER,
    "pruned": _NUMBER,
    "memory": (int,),
    "counts": (dict,),
    "dtype": (str,),
    "criterion": (str,),
    "reverse": (bool,),
    "ratio": (str,),
    "scope": (str,),
    "reference": (str,),
    "granularity": (str,),
    "budget_for": (str,),
    "aggregation": (str,),
    "minimum": (int,),
    "overrides": (dict,),
    "protect_end": (int,),
    "protect_super": (bool,),
    "seed": (int,),
}
"""Types of the arguments of `plan` that a suite may set."""
_CHOICES: Mapping[str, Collection[str]] = {
    "criterion": CRITERIA,
    "scope": SCOPES,
    "granularity": get_args(PlanGranularity),
    "budget_for": get_args(BudgetFor),
    "aggregation": get_args(Aggregation),
}


def read_suite(content: str, *, name: str, source: str) -> Suite:
    """Read a suite.

    Args:
        content: of the file.
        name: of the suite.
        source: what it was found by, for messages too.

    Raises:
        UsageError: naming what is wrong.
    """
    try:
        parsed = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"`{source}` must be a suite, but is not valid TOML ({error}).") from None
    return _suite(_Table(parsed, source), name=name, source=source)


class _Table:
    """A table of the file, whose keys are taken one by one; what is left at the end is unknown."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where, self.taken = content, where, list[str]()

    def take(self, key: str, kinds: tuple[type, ...], default: Any = None, *, required: bool = False) -> Any:
        self.taken.append(key)
        if key not in self.content:
            if required:
                raise UsageError(f"`{key}` must be given in {self.where}, but is missing.")
            return default
        value = self.content[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise UsageError(f"`{key}` of {self.where} must be {wanted}, but is {value!r} instead.")
        return value

    def table(self, key: str, *, required: bool = False) -> _Table | None:
        content = self.take(key, (dict,), required=required)
        return None if content is None else _Table(content, f"{self.where}, [{key}]")

    def one_of(self, key: str, known: Collection[str], default: str | None = None, *, required: bool = False) -> Any:
        value = self.take(key, (str,), default, required=required)
        if value is not None and value not in known:
            raise UsageError(f"`{key}` of {self.where} must be one of {', '.join(known)}, but is {value} instead.")
        return value

    def close(self) -> None:
        if unknown := [key for key in self.content if key not in self.taken]:
            raise UsageError(
                f"{self.where} must have the keys {', '.join(self.taken)}, but has {', '.join(unknown)} too."
            )


_KINDS: Mapping[type, str] = {
    bool: "true or false",
    dict: "a table",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
}


def _suite(table: _Table, *, name: str, source: str) -> Suite:
    configurations = _configurations(table)
    planned = any(isinstance(each, Planned) for each in configurations.values())
    text = _closed(table.table("text", required=True), _text)
    full, dense = _closed(table.table("baselines"), _baselines) or (False, None)
    suite = Suite(
        name=name,
        source=source,
        description=table.take("description", (str,), required=True),
        languages=table.one_of("languages", language_set_names(), required=True),
        directions=_directions(table),
        sentences=_positive(table, "sentences"),
        beams=_positive(table, "beams") or 1,
        model=_closed(table.table("model", required=True), _model),
        text=text,
        calibration=_closed(table.table("calibration", required=planned), _calibration),
        full=full,
        dense=dense,
        configurations=configurations,
    )
    table.close()
    _check_whole(suite)
    return suite


def _closed(table: _Table | None, read: Callable[[_Table], Any]) -> Any:
    if table is None:
        return None
    record = read(table)
    table.close()
    return record


def _check_whole(suite: Suite) -> None:
    """Refuse what no single key is wrong about."""
    try:
        suite.pairs()
    except UsageError as error:
        raise UsageError(f"{suite.source}: {error}") from None
    if not suite.configurations and not suite.full and suite.dense is None:
        raise UsageError(f"{suite.source} must have a configuration or a baseline, but has none.")
    if suite.calibration is None:
        return
    if suite.calibration.split == suite.text.split:
        raise UsageError(
            f"`split` of {suite.source}, [calibration] must be another one than is translated, "
            f"but is {suite.text.split} too."
        )
    needs_pairs = [name for name, each in suite.planned.items() if _needs_pairs(each)]
    if needs_pairs and suite.calibration.granularity != "pair":
        raise UsageError(
            f"`granularity` of {suite.source}, [calibration] must be pair for {', '.join(needs_pairs)}, "
            f"but is {suite.calibration.granularity} instead."
        )


def _needs_pairs(planned: Planned) -> bool:
    return planned.settings.get("granularity") == "pair" or planned.settings.get("aggregation") == "mean-of-directions"


def _model(table: _Table) -> ModelWanted:
    return ModelWanted(
        default=table.take("default", (str,)),
        family=table.take("family", (str,)),
        experts=_positive(table, "experts"),
        like=table.take("like", (str,)),
    )


def _text(table: _Table) -> TextWanted:
    kind = table.one_of("kind", get_args(TextKind), required=True)
    return TextWanted(kind, table.take("split", (str,), required=True))


def _calibration(table: _Table) -> CalibrationWanted:
    split = table.take("split", (str,), required=True)
    return CalibrationWanted(split, table.one_of("granularity", ("language", "pair"), "language"))


def _baselines(table: _Table) -> tuple[bool, DenseWanted | None]:
    return table.take("full", (bool,), False), _closed(table.table("dense"), _dense)


def _dense(table: _Table) -> DenseWanted:
    return DenseWanted(
        table.take("default", (str,)), table.take("like", (str,)), optional=table.take("optional", (bool,), False)
    )


def _directions(table: _Table) -> tuple[str, ...]:
    found = table.take("directions", (str, list), required=True)
    listed = [found] if isinstance(found, str) else found
    if not listed or not all(isinstance(each, str) for each in listed):
        raise UsageError(
            f"`directions` of {table.where} must be all, english, or a list such as "
            f'["eng_Latn-*", "deu_Latn-fra_Latn"], but is {found!r} instead.'
        )
    return tuple(listed)


def _configurations(table: _Table) -> dict[str, Planned | Given]:
    found = table.table("configurations")
    if found is None:
        return {}
    _check_names(found.content, found.where)
    return {name: _configuration(_some(found.table(name))) for name in found.content}


def _some(table: _Table | None) -> _Table:
    assert table is not None
    return table


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if name in _RESERVED or not _NAME.fullmatch(name):
            raise UsageError(
                f"{where} must be named with letters, digits, spaces and `._+:%-`, other than "
                f"{' and '.join(_RESERVED)}, but one is {name!r} instead."
            )


def _configuration(table: _Table) -> Planned | Given:
    if "given" in table.content:
        kind = table.one_of("given", get_args(GivenKind))
        given = Given(kind, optional=table.take("optional", (bool,), False))
        table.close()
        return given
    settings = {key: table.take(key, kinds) for key, kinds in _PLAN.items()}
    table.close()
    for key, known in _CHOICES.items():
        table.one_of(key, known)
    chosen = {key: value for key, value in settings.items() if value is not None}
    if len(budgets := [key for key in BUDGETS if key in chosen]) != 1:
        raise UsageError(
            f"{table.where} must have one of {', '.join(BUDGETS)}, or `given`, "
            f"but has {' and '.join(budgets) or 'none'} instead."
        )
    return Planned(chosen)


def _positive(table: _Table, key: str) -> int | None:
    number: int | None = table.take(key, (int,))
    if number is not None and number < 1:
        raise UsageError(f"`{key}` of {table.where} must be 1 or more, but is {number} instead.")
    return number
