"""Which language a text is in: identifiers restricted to given languages, FLORES-200 codes in and out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import FloatArray
from nllb_prune.languages import find_language

# Labels that `find_language` does not know, or knows as another language.
_LABELS: dict[str, tuple[str, ...]] = {
    "als": (),  # Alemannic in Wikipedia's codes, which lid.176 uses; Tosk Albanian in ISO 639-3
    "cmn": ("zho_Hans", "zho_Hant"),
    "cmn_Hani": ("zho_Hans", "zho_Hant"),  # GlotLID
    "fas_Arab": ("pes_Arab", "prs_Arab"),  # GlotLID
    "gug": ("grn_Latn",),
    "yue_Hani": ("yue_Hant",),  # GlotLID
    "zh": ("zho_Hans", "zho_Hant"),
    "zho": ("zho_Hans", "zho_Hant"),
}
_FASTTEXT_PREFIX = "__label__"


@dataclass(frozen=True, slots=True, eq=False)
class Identified:
    """How probable each language is for each text."""

    languages: tuple[str, ...]
    """Those considered: the wanted ones that the identifier knows; of two with one label, the first."""
    probabilities: FloatArray
    """`(texts, languages)`: rows sum to 1, or are NaN where nothing can be told (no letters, no known sequences)."""

    @property
    def labels(self) -> list[str | None]:
        """The most probable language of each text, the first of equal ones; None where nothing can be told."""
        if not self.languages:
            return [None] * len(self.probabilities)
        return [None if np.isnan(row[0]) else self.languages[int(row.argmax())] for row in self.probabilities]

    @property
    def confidences(self) -> FloatArray:
        """Probability `(texts,)` of the label; NaN where there is none."""
        if not self.languages:
            return np.full(len(self.probabilities), np.nan)
        return np.asarray(self.probabilities.max(axis=1), np.float64)


class LanguageIdentifier(Protocol):
    """Tells which of some languages a text is in."""

    @property
    def name(self) -> str:
        """Short name."""

    @property
    def signature(self) -> str:
        """Everything that decides about the result: library or file, and its version."""

    def known(self, languages: Iterable[str]) -> tuple[str, ...]:
        """Return those of the languages, in their order, that it can identify."""

    def identify(self, texts: Sequence[str], languages: Iterable[str]) -> Identified:
        """Identify texts as one of the languages; those it does not know are left out."""


@dataclass(frozen=True, slots=True)
class Py3LangId:
    """The identifier whose model is inside its package (langid of Lui and Baldwin 2012, retrained)."""

    name: str = "py3langid"

    @property
    def signature(self) -> str:
        """Name and version of the package, which has one model."""
        return f"py3langid-{version('py3langid')}"

    def known(self, languages: Iterable[str]) -> tuple[str, ...]:
        """Return those of the languages that are among its 140 labels."""
        return _known(_py3langid().labels, languages)

    def identify(self, texts: Sequence[str], languages: Iterable[str]) -> Identified:
        """Identify by byte sequences; the model is restricted before it decides."""
        columns = _columns(_py3langid().labels, languages)
        found = Identified(tuple(columns), np.full((len(texts), len(columns)), np.nan))
        labels = tuple(sorted({label for each in columns.values() for label in each}))
        if labels:
            identifier = _restricted(labels)
            _fill(found, columns, texts, (dict(identifier.rank(text)) for text in texts))
        return found


@dataclass(frozen=True, slots=True)
class FastTextFile:
    """An identifier in a fastText model file: lid218e of NLLB, GlotLID, OpenLID, lid.176."""

    path: Path
    name: str = "fasttext"

    def __post_init__(self) -> None:
        """Refuse a file that is no fastText model, once and early."""
        _fasttext(self.path)

    @property
    def signature(self) -> str:
        """Name of the file and the start of its SHA-256."""
        return f"fasttext-{self.path.name}-{_sha256(self.path)[:8]}"

    def known(self, languages: Iterable[str]) -> tuple[str, ...]:
        """Return those of the languages that are among the labels of the file."""
        return _known(_fasttext_labels(self.path), languages)

    def identify(self, texts: Sequence[str], languages: Iterable[str]) -> Identified:
        """Identify by words and their parts; probabilities are shared out among the languages."""
        columns = _columns(_fasttext_labels(self.path), languages)
        found = Identified(tuple(columns), np.full((len(texts), len(columns)), np.nan))
        if columns:
            _fill(found, columns, texts, (_predict(self.path, text) for text in texts))
        return found


def identifier_of(path: Path | None = None) -> LanguageIdentifier:
    """Return the identifier of a fastText model file, or the usual one, which needs no file.

    Raises:
        UsageError: if the file is missing or no fastText model, or `fasttext-predict` is not installed.
    """
    return Py3LangId() if path is None else FastTextFile(path)


def languages_of_label(label: str) -> tuple[str, ...]:
    """Return the FLORES-200 codes that a label of an identifier stands for: ISO 639, or with a script; often one."""
    if label in _LABELS:
        return _LABELS[label]
    found = find_language(label)
    return () if found is None else (found.code,)


def _columns(labels: Iterable[str], languages: Iterable[str]) -> dict[str, list[str]]:
    """Return the labels of each known language; a label of two languages is the first one's."""
    of_language: dict[str, list[str]] = {code: [] for code in dict.fromkeys(languages)}
    for label in labels:
        for code in of_language:
            if code in languages_of_label(label):
                of_language[code].append(label)
                break
    return {code: found for code, found in of_language.items() if found}


def _known(labels: Iterable[str], languages: Iterable[str]) -> tuple[str, ...]:
    codes = {code for label in labels for code in languages_of_label(label)}
    return tuple(code for code in dict.fromkeys(languages) if code in codes)


def _fill(
    found: Identified, columns: dict[str, list[str]], texts: Sequence[str], ranked: Iterable[dict[str, float]]
) -> None:
    """Write the row of each text, normalised over the languages; NaN stays where all are equal."""
    for row, text, probabilities in zip(found.probabilities, texts, ranked, strict=True):
        values = [sum(probabilities.get(label, 0.0) for label in labels) for labels in columns.values()]
        total = sum(values)
        alike = len(values) > 1 and max(values) == min(values)
        if total > 0 and not alike and any(character.isalpha() for character in text):
            row[:] = np.asarray(values) / total


@cache
def _py3langid() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=4)
def _restricted(labels: tuple[str, ...]) -> Any:
    identifier = copy.copy(_py3langid())
    identifier.set_languages(labels)
    return identifier


@lru_cache(maxsize=2)
def _fasttext(path: Path) -> Any:
    try:
        import fasttext  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            f"`{path}` must be read by fasttext-predict, but that is not installed. "
            "`pip install nllb-prune[fasttext]` brings it."
        ) from None
    if not path.is_file():
        raise UsageError(f"`{path}` must be a fastText model file, but there is no such file.")
    try:
        return fasttext.load_model(str(path))
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"`{path}` must be a fastText model file, but cannot be read ({error}).") from None


@lru_cache(maxsize=2)
def _fasttext_labels(path: Path) -> tuple[str, ...]:
    return tuple(sorted(_predict(path, "")))  # of the end of a line, which every model knows


def _predict(path: Path, text: str) -> dict[str, float]:
    """Return the probability of every label."""
    labels, probabilities = _fasttext(path).predict(" ".join(text.split()), k=-1, threshold=-1.0)
    return dict(zip((label.removeprefix(_FASTTEXT_PREFIX) for label in labels), probabilities, strict=True))


@lru_cache(maxsize=2)
def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
