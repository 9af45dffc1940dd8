"""Detectors that need a large model: used if its package is installed and a local folder is given, never downloaded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import Detector, Measure, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray

_BATCH = 32
_SMALL = 1 << 16  # bytes: configurations, not weights


@dataclass(frozen=True, slots=True)
class Labse:
    """1 - cosine of the sentence embeddings of source and output (LaBSE, Feng et al. 2022)."""

    name: ClassVar[str] = "labse"
    needs: ClassVar[frozenset[str]] = frozenset()
    folder: Path
    _encoder: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Load the model from its folder alone."""
        package = _package("sentence_transformers", "labse", self.folder)
        encoder = _loaded(
            self.folder, lambda: package.SentenceTransformer(str(self.folder), device="cpu", local_files_only=True)
        )
        object.__setattr__(self, "_encoder", encoder)

    @property
    def settings(self) -> Mapping[str, str]:
        """Folder and package."""
        return {"model": _identity(self.folder), "sentence-transformers": version("sentence-transformers")}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return distances ``(sentences,)`` from 0 to 2."""
        source, output = (
            np.asarray(
                self._encoder.encode(
                    list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False
                ),
                np.float64,
            )
            for texts in (outputs.sources, outputs.outputs)
        )
        return np.asarray(1.0 - (source * output).sum(axis=1), np.float64)


@dataclass(frozen=True, slots=True)
class Comet:
    """Minus the quality that a COMET model without references estimates (Rei et al. 2020, 2022)."""

    name: ClassVar[str] = "comet"
    needs: ClassVar[frozenset[str]] = frozenset()
    folder: Path
    _model: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Load `checkpoints/model.ckpt`; the encoder's tokenizer must be in the Hugging Face cache."""
        package = _package("comet", "comet", self.folder)
        checkpoint = self.folder / "checkpoints" / "model.ckpt"
        if not checkpoint.is_file():
            raise UsageError(f"`{self.folder}` must have checkpoints/model.ckpt, but has not.")
        model = _loaded(self.folder, lambda: package.load_from_checkpoint(str(checkpoint), local_files_only=True))
        object.__setattr__(self, "_model", model)

    @property
    def settings(self) -> Mapping[str, str]:
        """Folder and package."""
        return {"model": _identity(self.folder), "unbabel-comet": version("unbabel-comet")}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return minus the estimates ``(sentences,)``."""
        pairs = [{"src": s, "mt": o} for s, o in zip(outputs.sources, outputs.outputs, strict=True)]
        found = self._model.predict(pairs, batch_size=_BATCH, gpus=0, progress_bar=False)
        return -np.asarray(found.scores, np.float64)


MODELS: Mapping[str, Callable[[Path], Measure]] = {"labse": Labse, "comet": Comet}
"""By name; the extra that installs what each needs, where there is one, has the same name."""
_INSTALL = {
    "labse": "`pip install nllb-prune[labse]` brings it",
    # Its 2.2.7 asks for numpy < 2 and py3langid for numpy >= 2, so no extra can install both.
    "comet": "install unbabel-comet beside it, or give its scores as a column `score_comet`",
}


def model_detector(name: str, folder: Path, *, threshold: float | None = None) -> Detector:
    """Return the detector of a model in a local folder.

    Args:
        name: One of `MODELS`.
        folder: As the package of the model saves or downloads it.
        threshold: From `threshold_at` on good outputs; without one nothing is flagged, and only values are given.

    Raises:
        UsageError: if the name is unknown, the package is not installed, or the folder has no such model.
    """
    if name not in MODELS:
        raise UsageError(f"`name` must be one of {', '.join(MODELS)}, but is {name!r} instead.")
    return Detector(MODELS[name](folder), math.inf if threshold is None else threshold)


def _identity(folder: Path) -> str:
    """Return the name of a folder with a hash of its small files and the sizes of all: other models have other ones."""
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        digest.update(path.read_bytes() if size < _SMALL else b"")
    return f"{folder.name}-{digest.hexdigest()[:8]}"


def _package(module: str, name: str, folder: Path) -> Any:
    """Import the package of a model, after a look at the folder, so that nothing is fetched instead."""
    if not folder.is_dir():
        raise UsageError(f"`{folder}` must be a folder with the model of `{name}`, but there is none; none is fetched.")
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"`{name}` needs the package {module}, but it is not installed; {_INSTALL[name]}.") from None


def _loaded(folder: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # the packages raise whatever their parts raise
        raise UsageError(f"`{folder}` must be a model that loads without network, but does not ({error}).") from error
