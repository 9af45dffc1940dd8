"""What is asked of the Hub, with one line for whatever goes wrong there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nllb_prune.errors import UsageError


def fetch_files(hub_id: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """Fetch the files of a model that fit the patterns into the Hub's cache, and return their folder."""
    import huggingface_hub

    with _in_one_line(f"`{hub_id}` must be a model that the Hub gives out"):
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns), revision=revision))


def file_sizes(hub_id: str, revision: str) -> dict[str, int | None]:
    """Return the bytes of each file of a model, as the Hub tells them."""
    import huggingface_hub

    with _in_one_line(f"`{hub_id}` must be a model that the Hub gives out"):
        info = huggingface_hub.HfApi().model_info(hub_id, revision=revision, files_metadata=True)
    return {file.rfilename: file.size for file in info.siblings or ()}


def fetch_file(hub_id: str, file: str, *, revision: str, folder: Path) -> Path:
    """Fetch one file into a folder of its own; what a broken fetch left there is gone on with."""
    import huggingface_hub

    with _in_one_line(f"`{file}` of `{hub_id}` must come whole from the Hub"):
        return Path(huggingface_hub.hf_hub_download(hub_id, file, revision=revision, local_dir=folder))


@contextmanager
def _in_one_line(wanted: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the two lines of huggingface_hub rest on other libraries, each with its own errors
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UsageError(f"{wanted}, but could not be fetched ({reason}).") from None
