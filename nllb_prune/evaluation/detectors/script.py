"""Outputs in another script than the target's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import regex  # type: ignore[import-untyped]

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import SCRIPT, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray

# ISO 15924 codes that stand for several Unicode scripts, or for a part of one (Unicode Technical Report 24). Simplified
# and traditional characters are one script, so this measure does not tell them apart.
_SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "Hang": ("Hang", "Hani"),  # Korean may write hanja
    "Hans": ("Hani", "Bopo"),
    "Hant": ("Hani", "Bopo"),
    "Jpan": ("Hani", "Hira", "Kana"),
}
# Letters of no script of their own (Common, Inherited) say nothing about it.
_LETTERS = r"\p{L}--[\p{Script=Common}\p{Script=Inherited}]"


@dataclass(frozen=True, slots=True)
class Script:
    """Share of the letters that the target is not written in."""

    name: ClassVar[str] = SCRIPT
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def settings(self) -> Mapping[str, str]:
        """The package whose Unicode tables are used."""
        return {"unicode": f"regex-{version('regex')}", "letters": "all-but-common"}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return shares ``(sentences,)``; NaN where there are no letters."""
        letters, own = _patterns(outputs.target.partition("_")[2])
        every = np.array([len(letters.findall(text)) for text in outputs.outputs], np.float64)
        native = np.array([len(own.findall(text)) for text in outputs.outputs], np.float64)
        foreign: FloatArray = np.divide(every - native, every, out=np.full(len(every), np.nan), where=every > 0)
        return foreign


@cache
def _patterns(script: str) -> tuple[Any, Any]:
    """Return patterns of a letter, and of a letter of a script: one that Unicode says is used with it."""
    names = "".join(rf"\p{{Script_Extensions={name}}}" for name in _SCRIPTS.get(script, (script,)))
    try:
        own = regex.compile(rf"(?V1)[[{_LETTERS}]&&[{names}]]")
    except regex.error:
        raise UsageError(
            f"`target` must be a code with its script, as in deu_Latn, but has the script {script!r} instead."
        ) from None
    return regex.compile(rf"(?V1)[{_LETTERS}]"), own
