"""spBLEU: BLEU over the pieces of one sentencepiece model for all languages, if a model is given or cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sacrebleu.utils
import sentencepiece
from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

from nllb_prune.errors import UsageError

_FLORES = "flores200"


@dataclass(frozen=True, slots=True)
class SpBleu:
    """The sentencepiece model that spBLEU splits text with."""

    path: Path
    name: str
    """In signatures: `flores200` for sacrebleu's own file, otherwise `spm-` and the first digits of `digest`."""
    digest: str
    """SHA-256 of the file."""

    @property
    def signature(self) -> str:
        """What scores depend on: the name and the file's content."""
        return f"tok:{self.name}|sha256:{self.digest[:16]}"

    def pieces(self, lines: Sequence[str]) -> list[str]:
        """Return each line as its pieces with spaces between them, as sacrebleu splits it."""
        processor = _processor(self.path, self.digest)
        return [" ".join(processor.EncodeAsPieces(line.rstrip())) for line in lines]


def cached_model() -> Path:
    """Return where sacrebleu keeps its model for `--tokenize flores200`, whether it is there or not."""
    name = str(SPM_MODELS[_FLORES]["url"]).rsplit("/", 1)[1]
    return Path(sacrebleu.utils.SACREBLEU_DIR, "models", name)


def spbleu_missing() -> str:
    """Return the line that says why there is no spBLEU and how to get it."""
    return (
        f"spBLEU is left out: its sentencepiece model is not in {cached_model()}; give the file, or let sacrebleu "
        f"fetch it once with a network: `sacrebleu REFERENCES -i OUTPUTS -m bleu --tokenize {_FLORES}`."
    )


def find_spbleu(path: Path | None = None) -> SpBleu | None:
    """Return spBLEU with the model given, or with sacrebleu's cached one; `None` if there is none. Never downloads.

    Raises:
        UsageError: if the file given is missing, or is no sentencepiece model.
    """
    cached = cached_model()
    if path is None:
        return _open(cached, _FLORES) if cached.is_file() else None
    own = cached.is_file() and path.is_file() and path.samefile(cached)
    return _open(path, _FLORES if own else None)


def _open(path: Path, name: str | None) -> SpBleu:
    if not path.is_file():
        raise UsageError(f"`{path}` must be a sentencepiece model, but there is no such file.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _processor(path, digest)
    return SpBleu(path, name or f"spm-{digest[:8]}", digest)


@lru_cache(maxsize=2)
def _processor(path: Path, digest: str) -> sentencepiece.SentencePieceProcessor:
    """Load a model; the digest tells a file from another that took its place."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise UsageError(f"`{path}` must be a sentencepiece model, but cannot be read ({error}).") from None
    return processor
