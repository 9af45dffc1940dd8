"""Asset cards as fairseq2 has them: by the name of an asset, or from a file."""

from __future__ import annotations

from pathlib import Path

from fairseq2.assets import (
    AssetCard,
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
    if Path(path_or_id).suffix in _YAML:
        return True
    if is_local(path_or_id) or isinstance(path_or_id, Path):
        return False
    return get_asset_store().maybe_retrieve_card(path_or_id) is not None


def asset_card(path_or_name: str | Path) -> AssetCard:
    """Return a card by the name of its asset, or from a file, which may hold the cards that it builds upon, before it.

    Raises:
        UsageError: if the file holds no card.
    """
    if Path(path_or_name).suffix not in _YAML:
        return get_asset_store().retrieve_card(str(path_or_name))
    loader = get_dependency_resolver().resolve(AssetMetadataFileLoader)
    card: AssetCard | None = None
    known: dict[str, AssetCard] = {}
    try:
        for name, metadata in loader.load(Path(path_or_name).resolve(), str(path_or_name)):
            base = metadata.get("base")
            above = None if base is None else known.get(str(base)) or get_asset_store().retrieve_card(str(base))
            card = known[name.removesuffix("@")] = AssetCard(name.removesuffix("@"), metadata, above)
    except (OSError, AssetMetadataError, AssetNotFoundError) as error:
        raise UsageError(f"`{path_or_name}` must hold an asset card of fairseq2, but does not ({error}).") from None
    if card is None:
        raise UsageError(f"`{path_or_name}` must hold an asset card of fairseq2, but is empty.")
    return card
