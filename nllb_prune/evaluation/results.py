"""`DirectionResult`: what was measured of one configuration in one direction, sentence by sentence, and its file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nllb_prune.evaluation.fidelity.fidelity import Fidelity
from nllb_prune.evaluation.scores.metrics import Scores, scores_from_json, scores_to_json
from nllb_prune.evaluation.scores.packing import pack, unpack
from nllb_prune.evaluation.scores.surface import Surface
from nllb_prune.result_files import Header, ResultFormat, canonical_json

FloatArray = NDArray[np.float64]

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DirectionResult:
    """One configuration in one direction; all lists are by line of the text."""

    configuration: str
    source: str
    target: str
    kept: float
    """Share of the experts in use; 1 for a full or a dense model."""
    weight_bytes: int
    """Of the weights that this direction needs, in the dtype of the run."""
    hypotheses: tuple[str, ...]
    mean_log_probabilities: FloatArray
    """`(sentences,)`: mean over the tokens of an output, natural logarithm."""
    ended: NDArray[np.bool_]
    """`(sentences,)`: whether the model came to an end before the limit."""
    scores: Scores
    surface: Surface
    detections: Mapping[str, FloatArray]
    """`(sentences,)` for each detector: its values, NaN where it cannot tell."""
    on_references: Mapping[str, FloatArray]
    """The same on the references, for detectors that are wrong about good text too."""
    fidelity: Fidelity | None
    """Against the full model, teacher-forced on the references; none for the full model and for dense ones."""

    @property
    def direction(self) -> str:
        """`source-target`."""
        return f"{self.source}-{self.target}"

    @property
    def sentences(self) -> int:
        """Number of lines."""
        return len(self.hypotheses)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "configuration": self.configuration,
            "source": self.source,
            "target": self.target,
            "kept": self.kept,
            "weight_bytes": self.weight_bytes,
            "hypotheses": list(self.hypotheses),
            "mean_log_probabilities": pack(self.mean_log_probabilities[:, None]),
            "ended": self.ended.astype(int).tolist(),
            "scores": scores_to_json(self.scores),
            "surface": self.surface.to_json(),
            "detections": _packed(self.detections),
            "on_references": _packed(self.on_references),
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> DirectionResult:
        """Rebuild from `to_json`."""
        return cls(
            configuration=content["configuration"],
            source=content["source"],
            target=content["target"],
            kept=content["kept"],
            weight_bytes=content["weight_bytes"],
            hypotheses=tuple(content["hypotheses"]),
            mean_log_probabilities=unpack(content["mean_log_probabilities"])[:, 0],
            ended=np.array(content["ended"], np.bool_),
            scores=scores_from_json(content["scores"]),
            surface=Surface.from_json(content["surface"]),
            detections=_unpacked(content["detections"]),
            on_references=_unpacked(content["on_references"]),
            fidelity=None if content["fidelity"] is None else Fidelity.from_json(content["fidelity"]),
        )


def _packed(values: Mapping[str, FloatArray]) -> dict[str, Any]:
    """Return columns of values as one table with their names; NaN survives."""
    names = sorted(values)
    return {"names": names, "values": pack(np.stack([values[name] for name in names], axis=1))} if names else {}


def _unpacked(content: Mapping[str, Any]) -> dict[str, FloatArray]:
    if not content:
        return {}
    table = unpack(content["values"])
    return {name: table[:, column] for column, name in enumerate(content["names"])}


def _pack(result: DirectionResult, header: Header) -> bytes:
    return gzip.compress(canonical_json(header) + b"\n" + canonical_json(result.to_json()) + b"\n", mtime=0)


def _unpack(content: bytes) -> tuple[DirectionResult, Header]:
    try:
        header, result = gzip.decompress(content).splitlines()
        return DirectionResult.from_json(json.loads(result)), json.loads(header)
    except (EOFError, zlib.error) as error:
        raise ValueError(str(error)) from None


def _read_header(file: BinaryIO) -> Header:
    """Read the first line, and the rest for its checksum alone: a damaged file is found while it can be replaced."""
    with gzip.open(file) as lines:
        try:
            header: Header = json.loads(lines.readline())
            while lines.read(_BLOCK):
                pass
        except (EOFError, zlib.error) as error:
            raise ValueError(str(error)) from None
    return header


RESULT_FILES: ResultFormat[DirectionResult] = ResultFormat("jsonl.gz", _pack, _unpack, _read_header)
"""Two lines of JSON, compressed: the header, which can be parsed alone, and the result."""
