"""A model for the verbs, loaded by fairseq2: from a folder as `load_model` takes it, or from an asset card."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fairseq2.assets import AssetCard, AssetCardError, AssetCardNotValidError, AssetDownloadError, get_asset_store
from fairseq2.data.tokenizers import TokenizerFamilyNotKnownError, TokenizerGatedError, TokenizerModelError
from fairseq2.error import OperationalError
from fairseq2.models import ModelFamilyNotKnownError, ModelGatedError
from fairseq2.models.family import get_model_family_name
from fairseq2.models.hub import load_model as fairseq2_load_model
from fairseq2.models.nllb import NLLB_FAMILY
from fairseq2.models.transformer import TransformerModel
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model import describe as described
from nllb_prune.model import loading
from nllb_prune.model.chosen import Chosen, choose
from nllb_prune.model.describe import require_sparse, row_norms
from nllb_prune.model.facts import ModelFacts, facts_of, identity_of, parameter_counts, sparse_layers
from nllb_prune.model.loading import dtype_of, resolved_dtype, stored_dtype
from nllb_prune.model.placement import Placement
from nllb_prune.model.routing import ModelRouting, attach_routing, is_routed, routing_of
from nllb_prune.model.source import EMBEDDED, is_local, model_name
from nllb_prune.model.spec import Fingerprint, ModelSpec
from nllb_prune.on_fairseq2.card import card_of
from nllb_prune.on_fairseq2.card_reading import asset_card, is_card
from nllb_prune.on_fairseq2.config import NLLB_MOE_FAMILY, NllbMoeConfig
from nllb_prune.on_fairseq2.hub import get_nllb_moe_model_hub
from nllb_prune.on_fairseq2.model import Fairseq2Model
from nllb_prune.on_fairseq2.needed import need_fairseq2
from nllb_prune.on_fairseq2.vocabulary import rows_for_transformers

_FAMILIES = (NLLB_MOE_FAMILY, NLLB_FAMILY)
_OF_CARDS = (
    AssetCardError,
    AssetCardNotValidError,
    AssetDownloadError,
    ModelFamilyNotKnownError,
    ModelGatedError,
    OperationalError,
    TokenizerFamilyNotKnownError,
    TokenizerGatedError,
    TokenizerModelError,
)
"""What fairseq2 raises of a card, or of what it names; these have no common ground."""


def load_model(
    path_or_id: str | Path,
    *,
    masks: MaskSet | None = None,
    direction: Direction | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Load a model as fairseq2's, to be used as one of `nllb_prune.load_model`.

    Args:
        path_or_id: As of `nllb_prune.load_model`; or the name of a fairseq2 asset, or a `.yaml` file with its card.
        masks: As of `nllb_prune.load_model`.
        direction: As of `nllb_prune.load_model`.
        dtype: As of `nllb_prune.load_model`; of a card float32 by default.
        device: Where to; the CPU by default.

    Raises:
        UsageError: as `nllb_prune.load_model`, and of a card that is none of an NLLB model.
    """
    placed = Placement.on(torch.device(device or "cpu"))
    if is_known_card(path_or_id):
        with card_errors():
            return _from_card(asset_card(path_or_id), masks, direction, dtype=dtype, device=placed)
    chosen = choose(path_or_id, masks=masks, direction=direction)
    with chosen.opened() as (checkpoint, spec):
        dtype = resolved_dtype(
            dtype, on_cpu=placed.on_cpu, stored=lambda: stored_dtype(chosen.family, checkpoint, chosen.config)
        )
    card = card_of(path_or_id, kept=chosen.kept)
    inner = _load(AssetCard(str(card["name"]), card), dtype=dtype, device=placed)
    _round_routers(inner, dtype)
    return _finished(inner, routing_of(inner), spec, name=model_name(path_or_id), chosen=chosen)


def adopt(model: TransformerModel, *, name: str) -> Fairseq2Model:
    """Give a model that fairseq2 loaded, of the family `nllb_moe` or `nllb`, the surface of ours.

    After it, masks can be set on the model itself as well: it is known what model it is.

    Args:
        model: As `fairseq2.models.load_model` gives it.
        name: What to call it in files that travel.
    """
    state = _state_of(model)
    return _finished(model, state, _fingerprinted(model, state.spec), name=name, chosen=None)


def load_facts(
    path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> ModelFacts:
    """Describe what `load_model` would load; it is loaded for that."""
    return facts_of(load_model(path_or_id, dtype=dtype, device=device))


def load_spec(path_or_id: str | Path) -> ModelSpec:
    """Describe a sparse model without loading it; of an asset card without fingerprint.

    Raises:
        UsageError: if it is dense.
    """
    if not is_known_card(path_or_id):
        return described.load_spec(path_or_id)
    card = asset_card(path_or_id)
    with card_errors():
        sparse = _family_of(card) == NLLB_MOE_FAMILY
        config = get_nllb_moe_model_hub().get_model_config(card) if sparse else None
    return require_sparse((NllbMoeConfig.dense() if config is None else config).spec, card.name)


def in_parts(path_or_id: str | Path) -> bool:
    """Return whether a model is a pruned checkpoint with a file for each language side."""
    return not is_known_card(path_or_id) and loading.in_parts(path_or_id)


def is_known_card(path_or_id: str | Path) -> bool:
    """Return whether this is an asset card, by name or as a file, and no folder and no id of the Hub.

    Raises:
        UsageError: if it is none of them.
    """
    if is_card(path_or_id):
        return True
    name = str(path_or_id)
    if is_local(path_or_id) or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return False
    raise UsageError(
        f"`model` must be {', '.join(EMBEDDED)}, a folder, a Hub id (`owner/name`), a .yaml file with an asset card, "
        f"or an asset of fairseq2 ({', '.join(_known_assets())}), but is `{name}` instead."
    )


@contextmanager
def card_errors() -> Iterator[None]:
    """Say in one line what fairseq2 finds wrong with a card, or with what it names."""
    try:
        yield
    except _OF_CARDS as error:
        raise UsageError(_reason(error)) from None


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


def _family_of(card: AssetCard) -> str:
    family: str = get_model_family_name(card)
    if family not in _FAMILIES:
        raise UsageError(f"`{card.name}` must be of the family {' or '.join(_FAMILIES)}, but is of {family} instead.")
    if not card.has_field("checkpoint"):
        raise UsageError(f"`{card.name}` must name a checkpoint in its asset card, but names none.")
    return family


def _from_card(
    card: AssetCard,
    masks: MaskSet | None,
    direction: Direction | None,
    *,
    dtype: torch.dtype | str | None,
    device: Placement,
) -> nn.Module:
    _family_of(card)
    if masks is None and direction is not None:
        raise UsageError(f"`direction` must come with masks where `{card.name}` is an asset card, but comes without.")
    dtype = resolved_dtype(dtype_of(dtype), on_cpu=True, stored=lambda: torch.float32)
    inner = _load(card, dtype=dtype, device=device)
    state = _state_of(inner)
    spec = _fingerprinted(inner, state.spec)
    if masks is not None:
        masks.check_model(require_sparse(spec, card.name))
    _round_routers(inner, dtype)
    return _finished(inner, state, spec, name=card.name, chosen=_chosen_by(card, state))


def _chosen_by(card: AssetCard, state: ModelRouting) -> Chosen | None:
    """Return what an export says of itself whose experts, all of them, a card's model holds."""
    if (field := card.maybe_get_field("checkpoint")) is None or field.as_uri().scheme != "file":
        return None
    folder: Path = field.as_uri().to_path()
    if not (folder / "config.json").exists():
        return None
    chosen = choose(folder)
    return chosen if state.resident == (None if chosen.kept is None else dict(chosen.kept)) else None


def _fingerprinted(model: nn.Module, spec: ModelSpec) -> ModelSpec:
    rows = [norm for sparse in sparse_layers(model) for norm in row_norms(sparse.router_weight)]
    return dataclasses.replace(spec, fingerprint=Fingerprint.of(spec.stacks, rows))


def _load(card: AssetCard, *, dtype: torch.dtype, device: Placement) -> TransformerModel:
    with card_errors():
        model = fairseq2_load_model(card, dtype=dtype, device=device.of(""))
    assert isinstance(model, TransformerModel)
    model.eval()
    model.requires_grad_(requires_grad=False)  # as of `nllb_prune.load_model`: no gradients of weights are kept
    return model


def _reason(error: BaseException) -> str:
    """Return what went wrong at the bottom of it, in one line; of a download its address."""
    while error.__cause__ is not None and not isinstance(error, AssetDownloadError):
        error = error.__cause__
    return " ".join(str(error).split())


def _state_of(model: TransformerModel) -> ModelRouting:
    """Return the routing state that our factory gave a model, or one for a model of fairseq2's own."""
    return routing_of(model) if is_routed(model) else ModelRouting(NllbMoeConfig.dense().spec)


def _round_routers(model: nn.Module, dtype: torch.dtype) -> None:
    """Round routers as the other weights are, and keep them in float32: what transformers' routers do."""
    with torch.no_grad():
        for sparse in sparse_layers(model):
            sparse.router_weight.copy_(sparse.router_weight.to(dtype))


def _finished(
    inner: TransformerModel,
    state: ModelRouting,
    spec: ModelSpec,
    *,
    name: str,
    chosen: Chosen | None,
) -> Fairseq2Model:
    """Complete the routing state as `nllb_prune.load_model` does, and give the model its surface."""
    state.spec = dataclasses.replace(spec, parameters=parameter_counts(inner))
    state.backend = f"fairseq2 {need_fairseq2()}"
    pruning = None
    if chosen is not None:
        pruning = chosen.pruning
        state.pruning, state.masks = chosen.pruning_in_memory(), chosen.carried_masks()
    embedding = rows_for_transformers(inner.decoder_frontend.embed.weight.detach())
    state.name, state.identity = name, identity_of(embedding, state.spec, pruning)
    attach_routing(inner, state)
    return Fairseq2Model(inner, state).eval()
