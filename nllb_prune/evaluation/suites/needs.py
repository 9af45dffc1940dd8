"""What a suite would need before it starts, and what of it is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nllb_prune.corpus import DATASETS, ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.suites.records import FLORES_LINES, Given, GivenFiles, Need, Suite
from nllb_prune.evaluation.suites.statistics import other_model, statistics_need
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import ModelFacts, load_facts
from nllb_prune.model.source import EMBEDDED, embedded_text
from nllb_prune.planning.memory import show_bytes, weight_bytes
from nllb_prune.worklist import named

LoadFacts = Callable[[str], ModelFacts]
"""Model -> what results of it depend on."""


@dataclass(frozen=True, slots=True)
class Needs:
    """All that a suite needs."""

    suite: Suite
    items: tuple[Need, ...]
    directions: int
    sentences: int | None
    """Of each direction; None if the text is not there to be counted."""
    configurations: tuple[str, ...]
    """What would be run, baselines too."""

    @property
    def missing(self) -> tuple[Need, ...]:
        """What is not there."""
        return tuple(item for item in self.items if item.missing is not None)

    @property
    def translations(self) -> int | None:
        """Sentences to be translated in all."""
        return None if self.sentences is None else self.directions * self.sentences * len(self.configurations)

    def text(self) -> str:
        """Return a block to read: each need on a line, those missing with the next step below."""
        lines = [f"suite {self.suite.name}: {self.suite.description}"]
        width = max(len(item.what) for item in self.items)
        for item in self.items:
            lines.append(f"  {item.what.ljust(width)}  {item.found}")
            lines += [] if item.missing is None else [f"  {' ' * width}  missing: {item.missing}"]
        return "\n".join([*lines, f"  {'work'.ljust(width)}  {self._work()}"])

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "suite": self.suite.name,
            "items": [asdict(item) for item in self.items],
            "directions": self.directions,
            "sentences": self.sentences,
            "configurations": list(self.configurations),
            "translations": self.translations,
        }

    def check(self) -> None:
        """Refuse to start while something is missing.

        Raises:
            UsageError: naming what.
        """
        if self.missing:
            names = ", ".join(item.what for item in self.missing)
            raise UsageError(f"The suite {self.suite.name} must have all it needs, but lacks: {names}.")

    def _work(self) -> str:
        count = "all" if self.sentences is None else f"{self.sentences:,}"
        total = "" if self.translations is None else f" = {self.translations:,} translations"
        search = "greedy" if self.suite.beams == 1 else f"beam {self.suite.beams}"
        return (
            f"{self.directions:,} directions x {count} sentences x {len(self.configurations)} configurations "
            f"({', '.join(self.configurations)}){total}, {search}"
        )


def needs(suite: Suite, given: GivenFiles, *, dtype: str = "float32", load_facts: LoadFacts = load_facts) -> Needs:
    """Find out what a suite needs; files are looked into, nothing is fetched from the Hub but text named by a Hub id.

    Args:
        suite: the suite; `dataclasses.replace` changes its sentences, beams and so on.
        given: what there is.
        dtype: of the weights, for their size.
        load_facts: of the backend that is to run.
    """
    model, facts = _model(suite, given, dtype=dtype, load_facts=load_facts)
    text, opened = _text(suite, given)
    items = [model, text]
    if suite.planned:
        items.append(statistics_need(suite, given, facts, opened))
    items += [_masks(suite, name, given, facts) for name, each in suite.configurations.items() if _is_given(each)]
    if suite.dense is not None:
        items.append(_dense(suite, given, dtype=dtype, load_facts=load_facts))
    return Needs(suite, tuple(items), len(suite.pairs()), _sentences(suite, opened), _to_run(suite, given))


def _is_given(configuration: object) -> bool:
    return isinstance(configuration, Given)


def _model(suite: Suite, given: GivenFiles, *, dtype: str, load_facts: LoadFacts) -> tuple[Need, ModelFacts | None]:
    wanted, name = suite.model, given.model or suite.model.default
    kind = " ".join(filter(None, [wanted.family, f"of {wanted.experts:,} experts" if wanted.experts else ""]))
    if name is None:
        like = f", such as {wanted.like}" if wanted.like else ""
        return Need("model", f"a model {kind}{like}", "name it: a local folder, or a Hub id to fetch"), None
    if not _is_local(name):
        return Need("model", f"{name}, on the Hub: fetched when the run starts, size not known here"), None
    try:
        facts = load_facts(name)
    except UsageError as error:
        return Need("model", name, str(error)), None
    found = f"{name}, {_size(facts, dtype)}"
    if wanted.family not in (None, facts.spec.family) or wanted.experts not in (None, facts.spec.experts):
        is_ = f"{facts.spec.family} of {facts.spec.experts:,} experts"
        return Need("model", found, f"it must be {kind}, but is {is_} instead"), facts
    return Need("model", found), facts


def _is_local(name: str) -> bool:
    return name in EMBEDDED or Path(name).exists() or name.count("/") != 1


def _size(facts: ModelFacts, dtype: str) -> str:
    assert facts.spec.parameters is not None
    experts = {stack.name: stack.total for stack in facts.spec.stacks}
    return f"{show_bytes(weight_bytes(facts.spec.parameters, experts, dtype))} of weights in {dtype}"


def open_text(suite: Suite, text: str | None) -> ParallelText:
    """Open the text that a suite translates, in the split it wants.

    Args:
        suite: the suite.
        text: as for `ParallelText.open`; None for the text of `mini`, where the suite is about that.

    Raises:
        UsageError: if none is given, it is no text, or lacks a language of the suite.
    """
    split, path = suite.text.split, text or (str(embedded_text()) if suite.text.kind == "mini" else None)
    if path is None:
        raise UsageError(
            f"`text` must be {suite.text.kind}, a folder with `{split}/eng_Latn.{split}` and so on, or `datasets:ID`, "
            "but is missing."
        )
    found = ParallelText.open(path, split if Path(path).is_dir() or path.startswith(DATASETS) else None)
    if absent := [code for code in suite.codes if code not in found.languages]:
        raise UsageError(
            f"`text` must be in the {len(suite.codes)} languages of the suite {suite.name}, but `{path}` lacks "
            f"{len(absent)} of them ({named(absent)})."
        )
    return found


def _text(suite: Suite, given: GivenFiles) -> tuple[Need, ParallelText | None]:
    name = given.text or ("the text of mini" if suite.text.kind == "mini" else suite.text.kind)
    found = f"{name}, {suite.text.split}, in {len(suite.codes)} languages"
    try:
        return Need("text", found), open_text(suite, given.text)
    except UsageError as error:
        return Need("text", found, str(error)), None


def _sentences(suite: Suite, text: ParallelText | None) -> int | None:
    lines = len(text.lines(suite.codes[0])) if text else None
    if lines is None and suite.text.kind == "FLORES-200":
        lines = FLORES_LINES.get(suite.text.split)
    if lines is None or suite.sentences is None:
        return lines
    return min(lines, suite.sentences)


def _masks(suite: Suite, name: str, given: GivenFiles, facts: ModelFacts | None) -> Need:
    wanted = suite.configurations[name]
    assert isinstance(wanted, Given)
    what = f"masks {name}"
    if name not in given.masks:
        index = "made of the published index: nllb-prune masks import INDEX --model MODEL --output FILE, then "
        step = f"{index if wanted.kind == 'index' else ''}--masks {name}=FILE"
        return Need(what, f"optional, left out ({step})") if wanted.optional else Need(what, "a mask file", step)
    try:
        masks = MaskSet.load(given.masks[name])
    except UsageError as error:
        return Need(what, str(given.masks[name]), str(error))
    problem = other_model(masks.fingerprint, facts)
    if absent := [f"{a}-{b}" for a, b in suite.pairs() if not masks.covers(a, b)]:
        problem = f"they lack {len(absent):,} of {len(suite.pairs()):,} directions ({named(absent)})"
    return Need(what, str(given.masks[name]), problem)


def _dense(suite: Suite, given: GivenFiles, *, dtype: str, load_facts: LoadFacts) -> Need:
    assert suite.dense is not None
    name = given.dense or suite.dense.default
    if name is None:
        like = f", such as {suite.dense.like}" if suite.dense.like else ""
        if suite.dense.optional:
            return Need("dense", f"optional, left out (--dense MODEL{like})")
        return Need("dense", f"a dense model{like}", "name it: --dense MODEL")
    if not _is_local(name):
        return Need("dense", f"{name}, on the Hub: fetched when the run starts, size not known here")
    try:
        return Need("dense", f"{name}, {_size(load_facts(name), dtype)}")
    except UsageError as error:
        return Need("dense", name, str(error))


def _to_run(suite: Suite, given: GivenFiles) -> tuple[str, ...]:
    names = ["full"] if suite.full else []
    for name, wanted in suite.configurations.items():
        if not isinstance(wanted, Given) or not wanted.optional or name in given.masks:
            names.append(name)
    dense = suite.dense
    if dense is not None and (given.dense or dense.default or not dense.optional):
        names.append("dense")
    return tuple(names)
