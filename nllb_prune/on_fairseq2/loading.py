"""A model for the verbs, loaded by fairseq2: from a folder as `load_model` takes it, or from an asset card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq2.assets import AssetCard
from fairseq2.models.hub import load_model as fairseq2_load_model
from fairseq2.models.transformer import TransformerModel
from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model import describe, facts, loading
from nllb_prune.model.chosen import Chosen, choose
from nllb_prune.model.describe import require_sparse
from nllb_prune.model.facts import ModelFacts, facts_of, identity_of, parameter_counts
from nllb_prune.model.loading import dtype_of, resolved_dtype, stored_dtype
from nllb_prune.model.placement import Placement
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.model.routing import ModelRouting, attach_routing, is_routed, routing_of
from nllb_prune.model.source import model_name
from nllb_prune.model.spec import Fingerprint, ModelSpec
from nllb_prune.on_fairseq2.attention import use_eager_attention
from nllb_prune.on_fairseq2.card import model_card
from nllb_prune.on_fairseq2.card_reading import asset_card, card_errors, checkpoint_of_card, config_of_card, is_card
from nllb_prune.on_fairseq2.config import NllbMoeConfig, config_of
from nllb_prune.on_fairseq2.model import Fairseq2Model
from nllb_prune.on_fairseq2.needed import need_fairseq2
from nllb_prune.on_fairseq2.vocabulary import sampled_for_transformers
from nllb_prune.tokenization import MAX_LENGTH

_NO_MATTER = "dropout_p"
"""The field of a configuration that changes no result: models are loaded for inference."""


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
        masks: As of `nllb_prune.load_model`; of a card all experts are loaded.
        direction: As of `nllb_prune.load_model`.
        dtype: As of `nllb_prune.load_model`; of a card float32 by default.
        device: Where to; the CPU by default.

    Raises:
        UsageError: as `nllb_prune.load_model`, and of a card that is none of an NLLB model.
    """
    placed = Placement.on(torch.device(device or "cpu"))
    if is_card(path_or_id):
        return _from_card(asset_card(path_or_id), masks, direction, dtype=dtype, device=placed)
    chosen = choose(path_or_id, masks=masks, direction=direction)
    with chosen.opened() as (checkpoint, spec):
        dtype = resolved_dtype(
            dtype, on_cpu=placed.on_cpu, stored=lambda: stored_dtype(chosen.family, checkpoint, chosen.config)
        )
    name = model_name(path_or_id)
    config = config_of(chosen.family, chosen.config, spec, pruning=chosen.pruning, kept=chosen.kept)
    inner = _load(name, config, chosen.folder, dtype=dtype, device=placed)
    return _finished(inner, routing_of(inner), spec, name=name, chosen=chosen)


def adopt(model: TransformerModel, card: AssetCard | str) -> Fairseq2Model:
    """Give a model that fairseq2 loaded the surface of ours, so that `translations`, `calibrate`, `evaluate` take it.

    It is changed in place: it has a routing state, and its attention takes the steps of transformers.

    Args:
        model: Of the family `nllb_moe` or `nllb`, as `fairseq2.models.load_model` gives it.
        card: By which it was loaded, or its name.
    """
    card = asset_card(card) if isinstance(card, str) else card
    return _adopted(model, card, config_of_card(card))


def load_facts(
    path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> ModelFacts:
    """Describe what `load_model` would load; of a card it is loaded for that."""
    if is_card(path_or_id):
        return facts_of(load_model(path_or_id, dtype=dtype, device=device))
    return dataclasses.replace(facts.load_facts(path_or_id, dtype=dtype, device=device), backend=_backend())


def load_spec(path_or_id: str | Path) -> ModelSpec:
    """Describe a sparse model without loading it; of an asset card without fingerprint.

    Raises:
        UsageError: if it is dense.
    """
    if not is_card(path_or_id):
        return describe.load_spec(path_or_id)
    card = asset_card(path_or_id)
    return require_sparse(config_of_card(card).spec, card.name)


def in_parts(path_or_id: str | Path) -> bool:
    """Return whether a model is a pruned checkpoint with a file for each language side."""
    return not is_card(path_or_id) and loading.in_parts(path_or_id)


def _from_card(
    card: AssetCard,
    masks: MaskSet | None,
    direction: Direction | None,
    *,
    dtype: torch.dtype | str | None,
    device: Placement,
) -> nn.Module:
    config = config_of_card(card)
    if config.max_seq_len < MAX_LENGTH:
        raise UsageError(
            f"`max_seq_len` of the asset card `{card.name}` must be {MAX_LENGTH} or more, at which texts are cut, but "
            f"is {config.max_seq_len} instead; positions have no weights, so it can be raised."
        )
    if masks is None and direction is not None:
        raise UsageError(f"`direction` must come with masks where `{card.name}` is an asset card, but comes without.")
    dtype = resolved_dtype(dtype_of(dtype), on_cpu=True, stored=lambda: torch.float32)
    model = _adopted(_load(card.name, config, checkpoint_of_card(card), dtype=dtype, device=device), card, config)
    if masks is not None:
        masks.check_model(require_sparse(routing_of(model).spec, card.name))
    return model


def _load(
    name: str, config: NllbMoeConfig, checkpoint: Path, *, dtype: torch.dtype, device: Placement
) -> TransformerModel:
    """Let fairseq2 load a model, by a card of our family whatever it comes from: so it is read by our own reader."""
    with card_errors(name):
        model = fairseq2_load_model(
            AssetCard(name, model_card(name, config, checkpoint)), dtype=dtype, device=device.of("")
        )
    assert isinstance(model, TransformerModel)
    model.eval()
    model.requires_grad_(requires_grad=False)  # as of `nllb_prune.load_model`: no gradients of weights are kept
    return model


def _adopted(model: TransformerModel, card: AssetCard, config: NllbMoeConfig) -> Fairseq2Model:
    state = _state_of(model)
    spec = state.spec
    if not spec.stacks:  # of a sparse model, its layers have taken it as they were filled
        spec = dataclasses.replace(spec, fingerprint=Fingerprint.of((), ()))
    chosen = _chosen_by(card, config)
    more = None if chosen is not None else {"config": _settings(config)}
    return _finished(model, state, spec, name=card.name, chosen=chosen, more=more)


def _chosen_by(card: AssetCard, config: NllbMoeConfig) -> Chosen | None:
    """Return what a card's checkpoint says of itself, if it is a folder and says what the card does."""
    folder = checkpoint_of_card(card)
    if not (folder / "config.json").exists():
        return None
    chosen = choose(folder)
    of_folder = config_of(chosen.family, chosen.config, chosen.spec, pruning=chosen.pruning)
    return chosen if _settings(config) == _settings(of_folder) else None


def _settings(config: NllbMoeConfig) -> dict[str, Any]:
    """Return what results depend on."""
    return {name: value for name, value in dataclasses.asdict(config).items() if name != _NO_MATTER}


def _state_of(model: TransformerModel) -> ModelRouting:
    """Return the routing state that our factory gave a model, or one for a model of fairseq2's own."""
    return routing_of(model) if is_routed(model) else ModelRouting(NllbMoeConfig.dense().spec)


def _finished(
    inner: TransformerModel,
    state: ModelRouting,
    spec: ModelSpec,
    *,
    name: str,
    chosen: Chosen | None,
    more: Mapping[str, Any] | None = None,
) -> Fairseq2Model:
    """Complete the routing state as `nllb_prune.load_model` does, and give the model its surface.

    Attention is computed as in models of transformers, so that what routers decide is the same to the last bit.
    """
    use_eager_attention(inner)
    state.spec = dataclasses.replace(spec, parameters=parameter_counts(inner))
    state.name, state.backend = name, _backend()
    if chosen is not None:
        pruning, state.masks = chosen.pruning, chosen.carried_masks()
        state.pruning = chosen.pruning_in_memory()
    else:
        pruning = state.pruning = _pruning_of(state)
    state.identity = identity_of(_sample(inner), state.spec, pruning, more=more)
    attach_routing(inner, state)
    return Fairseq2Model(inner, state).eval()


def _pruning_of(state: ModelRouting) -> ExpertPruning | None:
    """Return what can be said of a model of which a card lists the experts; `None` of a whole one."""
    if state.resident is None:
        return None
    assert state.spec.fingerprint is not None
    return ExpertPruning(
        base_model=state.name,
        base_type=state.spec.family,
        fingerprint=state.spec.fingerprint,
        kept=state.resident,
        sources=(),
        targets=(),
        masks="",
    )


def _sample(model: TransformerModel) -> Tensor:
    """Return the values of the embedding that `identity_of` takes of the whole, in the order of transformers."""
    embedding: Tensor = model.decoder_frontend.embed.weight.detach()
    return sampled_for_transformers(embedding, step=max(1, embedding.numel() // 1024))


def _backend() -> str:
    return f"fairseq2 {need_fairseq2()}"
