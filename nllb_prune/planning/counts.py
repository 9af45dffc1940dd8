"""Counts set by hand: for the layers of every language, or for those of some (overrides)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.budget import Counts

Overrides = Mapping[str, Mapping[str, int]]
"""Experts kept in each layer, by language and stack."""


def parse_counts(text: str) -> dict[str, int | Counts]:
    """Read counts by stack, `encoder=36,decoder=12`, or by layer, `encoder=36/36/40,decoder=12`."""
    counts: dict[str, int | Counts] = {}
    for part in text.split(","):
        stack, _, numbers = (side.strip() for side in part.partition("="))
        if not all(number.isdecimal() for number in numbers.split("/")) or stack in counts:
            raise UsageError(
                f"`counts` must be like encoder=36,decoder=12 or, by layer, encoder=36/40/36,decoder=12, "
                f"but is {text} instead."
            )
        layers = tuple(map(int, numbers.split("/")))
        counts[stack] = layers if "/" in numbers else layers[0]
    return counts


def explicit_counts(
    counts: Mapping[str, int | Sequence[int]], stacks: Sequence[Stack], *, minimum: int
) -> dict[str, Counts]:
    """Return the counts of every layer.

    Raises:
        UsageError: if a stack lacks them, or no layer can have them.
    """
    if set(counts) != {stack.name for stack in stacks}:
        names = " and ".join(stack.name for stack in stacks)
        raise UsageError(f"`counts` must be of {names}, but is of {', '.join(counts) or 'none'} instead.")
    return {stack.name: _by_layer(counts[stack.name], stack, minimum=minimum) for stack in stacks}


def _by_layer(counts: int | Sequence[int], stack: Stack, *, minimum: int) -> Counts:
    layers = tuple(counts) if isinstance(counts, Sequence) else (counts,) * len(stack.layers)
    if len(layers) != len(stack.layers):
        raise UsageError(f"`counts` must be of {len(stack.layers)} {stack.name} layers, but are {len(layers)} instead.")
    for count in layers:
        _check_count(count, stack, minimum=minimum, where=f"counts/{stack.name}")
    return layers


def read_overrides(path: Path) -> Overrides:
    """Read a TOML file of tables such as `[languages.eng_Latn]` with lines such as `decoder = 18`.

    Raises:
        UsageError: if it is missing or something else.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"`{path}` must be a TOML file of overrides, but cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"`{path}` must be a TOML file of overrides, but is not valid TOML ({error}).") from None
    if list(content) != ["languages"]:
        raise UsageError(
            f"`{path}` must have tables such as [languages.eng_Latn], but has {', '.join(content) or 'none'} instead."
        )
    overrides: Overrides = content["languages"]
    return overrides


def check_overrides(overrides: Any, stacks: Sequence[Stack], languages: Iterable[str], *, minimum: int) -> None:
    """Refuse overrides of languages or stacks that are not there, or by counts that no layer can have.

    Raises:
        UsageError: naming the first that is wrong.
    """
    if not isinstance(overrides, Mapping) or not all(isinstance(each, Mapping) for each in overrides.values()):
        raise UsageError("`overrides` must be counts by language and stack, but are something else instead.")
    known, by_name = sorted(languages), {stack.name: stack for stack in stacks}
    for language, by_stack in overrides.items():
        if language not in known:
            raise UsageError(f"`overrides` must be of {', '.join(known)}, but are of {language} too.")
        for name, count in by_stack.items():
            if name not in by_name:
                raise UsageError(f"`overrides/{language}` must be of {', '.join(by_name)}, but is of {name} instead.")
            _check_count(count, by_name[name], minimum=minimum, where=f"overrides/{language}/{name}")


def _check_count(count: Any, stack: Stack, *, minimum: int, where: str) -> None:
    if type(count) is not int or not minimum <= count <= stack.experts:
        raise UsageError(f"`{where}` must be {minimum} to {stack.experts} experts a layer, but is {count} instead.")
