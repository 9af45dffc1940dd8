"""Asset cards as fairseq2 has them: found by name or in a file, checked, and what is wrong with them in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from fairseq2.assets import (
    AssetCard,
    AssetCardError,
    AssetCardNotValidError,
    AssetDownloadError,
    AssetDownloadManager,
    AssetMetadataError,
    AssetMetadataFileLoader,
    AssetNotFoundError,
    get_asset_store,
)
from fairseq2.data.tokenizers import TokenizerFamilyNotKnownError, TokenizerGatedError, TokenizerModelError
from fairseq2.error import NotSupportedError, OperationalError
from fairseq2.models import ModelFamilyNotKnownError, ModelGatedError
from fairseq2.models.family import get_model_family_name
from fairseq2.models.nllb import NLLB_FAMILY, get_nllb_model_hub
from fairseq2.runtime.dependency import get_dependency_resolver

from nllb_prune.errors import UsageError
from nllb_prune.model.source import EMBEDDED, is_local
from nllb_prune.on_fairseq2.config import NLLB_MOE_FAMILY, NllbMoeConfig
from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub

_FAMILIES = (NLLB_MOE_FAMILY, NLLB_FAMILY)
_YAML = (".yaml", ".yml")
_OF_CARDS = (
    AssetCardError,
    AssetCardNotValidError,
    AssetDownloadError,
    AssetMetadataError,
    AssetNotFoundError,
    ModelFamilyNotKnownError,
    ModelGatedError,
    NotSupportedError,
    OperationalError,
    TokenizerFamilyNotKnownError,
    TokenizerGatedError,
    TokenizerModelError,
)
"""What fairseq2 raises of a card, or of what it names; these have no common ground."""
_LONGEST_REASON = 300


def is_card(path_or_id: str | Path) -> bool:
    """Return whether this is an asset card, by name or as a file, and no folder and no id of the Hub.

    Raises:
        UsageError: if it is none of them.
    """
    if _is_file(path_or_id):
        return True
    name = str(path_or_id)
    if is_local(path_or_id):
        return False
    if not isinstance(path_or_id, Path) and _is_asset(name):
        return True
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return False
    raise UsageError(
        f"`model` must be {', '.join(EMBEDDED)}, a folder, a Hub id (`owner/name`), a .yaml file with an asset card, "
        f"or an asset of fairseq2 ({', '.join(_known_assets())}), but is `{name}` instead."
    )


def asset_card(path_or_name: str | Path) -> AssetCard:
    """Return a card by the name of its asset, or from a file, which may hold the cards that it builds upon, before it.

    Raises:
        UsageError: if there is no such card.
    """
    try:
        card = _from_file(Path(path_or_name)) if _is_file(path_or_name) else _by_name(str(path_or_name))
    except (OSError, *_OF_CARDS) as error:
        raise UsageError(f"`{path_or_name}` must hold an asset card of fairseq2, but does not ({error}).") from None
    if card is None:
        raise UsageError(f"`{path_or_name}` must hold an asset card of fairseq2, but is empty.")
    return card


def family_of_card(card: AssetCard) -> str:
    """Return the family of a model that can be loaded.

    Raises:
        UsageError: if it is of another, or has no checkpoint.
    """
    with card_errors(card.name):
        family: str = get_model_family_name(card)
    if family not in _FAMILIES:
        raise UsageError(f"`{card.name}` must be of the family {' or '.join(_FAMILIES)}, but is of {family} instead.")
    if not card.has_field("checkpoint"):
        raise UsageError(f"`{card.name}` must name a checkpoint in its asset card, but names none.")
    return family


def config_of_card(card: AssetCard) -> NllbMoeConfig:
    """Return the configuration of a card's model; one of fairseq2's own dense family is a model without sparse layers.

    Raises:
        UsageError: if it is of another family, or its configuration is none.
    """
    sparse = family_of_card(card) == NLLB_MOE_FAMILY
    with card_errors(card.name):
        if sparse:
            found: NllbMoeConfig = get_nllb_moe_model_hub().get_model_config(card)
            return found
        dense = get_nllb_model_hub().get_model_config(card)
    return NllbMoeConfig.dense(
        model_dim=dense.model_dim,
        max_seq_len=dense.max_seq_len,
        vocab_size=dense.vocab_size,
        pad_idx=dense.pad_idx,
        num_encoder_layers=dense.num_encoder_layers,
        num_decoder_layers=dense.num_decoder_layers,
        num_encoder_attn_heads=dense.num_encoder_attn_heads,
        num_decoder_attn_heads=dense.num_decoder_attn_heads,
        encoder_ffn_inner_dim=dense.ffn_inner_dim,
        decoder_ffn_inner_dim=dense.ffn_inner_dim,
    )


def checkpoint_of_card(card: AssetCard) -> Path:
    """Return where a card's checkpoint is; one that is not on this machine is fetched, as fairseq2 does.

    Raises:
        UsageError: if it cannot be had.
    """
    with card_errors(card.name):
        uri = card.field("checkpoint").as_uri()
        if uri.scheme == "file":
            path: Path = uri.to_path()
        else:
            path = get_dependency_resolver().resolve(AssetDownloadManager).download_model(uri)
        inside = card.maybe_get_field("checkpoint_path")
        path = path if inside is None else path / inside.as_(str)
    if not path.exists():
        raise UsageError(f"`checkpoint` of the asset card `{card.name}` must be there, but `{path}` is not.")
    return path


@contextmanager
def card_errors(name: str) -> Iterator[None]:
    """Say in one line what fairseq2 finds wrong with a card of that name, or with what it names."""
    try:
        yield
    except _OF_CARDS as error:
        raise UsageError(_reason(name, error)) from None


def _reason(name: str, error: BaseException) -> str:
    """Return what went wrong: our own words where they are at the bottom of it, else fairseq2's, first and last."""
    last = error
    while last.__cause__ is not None:
        last = last.__cause__
    if isinstance(last, UsageError):
        return str(last)
    if isinstance(last, UnpicklingError):
        return (
            f"The checkpoint of the asset card `{name}` must hold tensors alone, but holds code, which is never run, "
            "or is damaged; convert it to safetensors where it is trusted."
        )
    said = dict.fromkeys(" ".join(str(each).split()) for each in (error, last))
    told = "; ".join(text.removesuffix(".") for text in said)[:_LONGEST_REASON]
    return f"The asset card `{name}` must be of a model that can be loaded, but is not: {told}."


def _is_file(path_or_name: str | Path) -> bool:
    return Path(path_or_name).suffix in _YAML


def _is_asset(name: str) -> bool:
    try:
        return get_asset_store().maybe_retrieve_card(name) is not None
    except AssetCardError:  # it lacks its base, as `asset_card` tells
        return True
    except AssetMetadataError as error:
        raise UsageError(f"fairseq2 must be able to read all its asset cards, but is not: {error}") from None


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


def _known_assets() -> list[str]:
    """Return the names of the assets that can be loaded; fairseq2's own search stops at a card of theirs it refuses."""
    store, names = get_asset_store(), []
    for name in sorted({each.partition("@")[0] for each in store.asset_names}):
        try:
            card = store.maybe_retrieve_card(name)
        except AssetCardError:
            continue
        family = None if card is None else card.maybe_get_field("model_family")
        if card is not None and family is not None and family.value in _FAMILIES and card.has_field("checkpoint"):
            names.append(name)
    return names
