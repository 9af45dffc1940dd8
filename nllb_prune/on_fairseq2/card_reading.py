"""Asset cards as fairseq2 has them: by the name of an asset, or from a file."""

from __future__ import annotations

from pathlib import Path

from fairseq2.assets import (
    AssetCard,
    AssetCardError,
    AssetMetadataError,
    AssetMetadataFileLoader,
    AssetNotFoundError,
    get_asset_store,
)
from fairseq2.runtime.dependency import get_dependency_resolver

from nllb_prune.errors import UsageError
from nllb_prune.model.source import is_local

_YAML = (".yaml", ".yml")


def is_card(path_or_id: str | Path) -> bool:
    """Return whether this is a file with a card, or the name of an asset that fairseq2 knows, and no model's folder."""
    if _is_file(path_or_id):
        return True
    if is_local(path_or_id) or isinstance(path_or_id, Path):
        return False
    try:
        return get_asset_store().maybe_retrieve_card(path_or_id) is not None
    except AssetCardError:  # it lacks its base, as `asset_card` tells
        return True


def asset_card(path_or_name: str | Path) -> AssetCard:
    """Return a card by the name of its asset, or from a file, which may hold the cards that it builds upon, before it.

    Raises:
        UsageError: if the file holds no card.
    """
    try:
        card = _from_file(Path(path_or_name)) if _is_file(path_or_name) else _by_name(str(path_or_name))
    except (OSError, AssetCardError, AssetMetadataError, AssetNotFoundError) as error:
        raise UsageError(f"`{path_or_name}` must hold an asset card of fairseq2, but does not ({error}).") from None
    if card is None:
        raise UsageError(f"`{path_or_name}` must hold an asset card of fairseq2, but is empty.")
    return card


def _is_file(path_or_name: str | Path) -> bool:
    return Path(path_or_name).suffix in _YAML


def _by_name(name: str) -> AssetCard:
    card: AssetCard = get_asset_store().retrieve_card(name)
    return card


def _from_file(path: Path) -> AssetCard | None:
    """Return the last card of a file; `None` if it is empty."""
    loader = get_dependency_resolver().resolve(AssetMetadataFileLoader)
    known: dict[str, AssetCard] = {}
    name = None
    for full_name, metadata in loader.load(path.resolve(), str(path)):
        name, base = full_name.removesuffix("@"), metadata.get("base")
        above = None if base is None else known.get(str(base)) or _by_name(str(base))
        known[name] = AssetCard(name, metadata, above)
    return None if name is None else known[name]
