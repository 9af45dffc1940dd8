"""Languages as clients name them: ISO 639-1 as LibreTranslate does, FLORES-200 codes where there is none."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nllb_prune.languages import Direction, find_language, language

AUTO = "auto"
_CODES = {"zho_Hans": "zh-Hans", "zho_Hant": "zh-Hant"}
"""Where LibreTranslate's code is not the two-letter one."""
_USUAL_TARGETS = ("spa_Latn", "eng_Latn")


@dataclass(frozen=True)
class ServedLanguages:
    """The languages of some directions.

    Args:
        directions: All that are served.
    """

    directions: tuple[Direction, ...]

    @cached_property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """Languages that each source is translated into; sources in the order of the directions."""
        found: dict[str, list[str]] = {}
        for source, target in self.directions:
            found.setdefault(source, []).append(target)
        return {source: tuple(targets) for source, targets in found.items()}

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Languages that are translated from."""
        return tuple(self.targets)

    @cached_property
    def into(self) -> frozenset[str]:
        """Languages that are translated into."""
        return frozenset(target for _, target in self.directions)

    @cached_property
    def all(self) -> tuple[str, ...]:
        """Languages of any direction, by code."""
        return tuple(sorted({*self.sources, *self.into}))

    @cached_property
    def listed(self) -> list[dict[str, Any]]:
        """What clients are told of them."""
        return [
            {"code": api_code(source), "name": language(source).name, "targets": [api_code(each) for each in targets]}
            for source, targets in self.targets.items()
        ]

    def serves(self, source: str, target: str) -> bool:
        """Return whether a direction is among them; a language into itself stays as it is."""
        return source == target or target in self.targets.get(source, ())

    def usual_source(self) -> str:
        """Return what text is taken to be that tells nothing: English, if it is served."""
        return "eng_Latn" if "eng_Latn" in self.sources else self.sources[0]

    def usual_target(self) -> str:
        """Return what a page offers first."""
        return next((code for code in _USUAL_TARGETS if code in self.into), min(self.into))


def code_of(name: str, served: Container[str]) -> str | None:
    """Return the FLORES-200 code of a language under any of its names, if it is served."""
    found = find_language(name)
    return found.code if found is not None and found.code in served else None


def api_code(code: str) -> str:
    """Return what clients call a language: `de`, `zh-Hans`, and the FLORES-200 code where there is nothing shorter."""
    return _CODES.get(code) or language(code).iso639_1 or code


def title(code: str) -> str:
    """Return a language's name and code for a message."""
    return f"{language(code).name} ({api_code(code)})"
