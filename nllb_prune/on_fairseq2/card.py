"""Asset cards of local folders: what fairseq2 must be told of a model to load it by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.languages import all_languages
from nllb_prune.model.families import family_of
from nllb_prune.model.pruned import pruning_of
from nllb_prune.model.source import is_local, load_tokenizer, model_folder, model_name, read_config
from nllb_prune.on_fairseq2.config import NLLB_MOE_FAMILY, NllbMoeConfig, config_of

TOKENIZER: Final = "tokenizer"
"""The field of the tokenizer's file."""
SENTENCEPIECE: Final = "sentencepiece.bpe.model"
_INTERNAL = ("<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>")
"""NLLB's last rows in fairseq2; transformers calls the first `<mask>` and has no name for the others."""
_PIECES_BEFORE = 4
"""`<s>`, `<pad>`, `</s>`, `<unk>`."""


def card_of(
    path_or_id: str | Path, *, name: str | None = None, kept: Mapping[str, ExpertMask] | None = None
) -> dict[str, Any]:
    """Return the fields of a model's asset card.

    Args:
        path_or_id: An embedded model, or a folder: a whole, a dense, or a pruned model.
        name: What fairseq2 is to call it; by default what the model is called.
        kept: Experts to load of it, by stack; all that there are, by default.

    Raises:
        UsageError: if the model is none that fairseq2's parts make, or the name none that fairseq2 takes.
    """
    if not is_local(path_or_id):
        raise UsageError(f"`model` must be a folder on this machine, which fairseq2 is to read, but is {path_or_id}.")
    name = model_name(path_or_id) if name is None else name
    if not name.strip() or "@" in name:
        raise UsageError(f"`name` must have a letter and no `@`, which fairseq2 splits it at, but is {name!r} instead.")
    folder = model_folder(path_or_id).resolve()
    config = read_config(folder)
    family = family_of(config)
    spec = family.spec(config)
    found = config_of(family, config, spec, pruning=pruning_of(config, spec), kept=kept)
    return model_card(name, found, folder) | _tokenizer(folder, vocabulary=found.vocab_size)


def model_card(name: str, config: NllbMoeConfig, checkpoint: Path) -> dict[str, Any]:
    """Return the fields of a card that loading the model takes."""
    return {
        "name": name,
        "model_family": NLLB_MOE_FAMILY,
        "model_config": _given(config),
        "checkpoint": str(checkpoint.resolve()),
    }


def card_text(fields_of_card: Mapping[str, Any]) -> str:
    """Return a card as YAML."""
    import yaml

    text: str = yaml.safe_dump(dict(fields_of_card), sort_keys=False, default_flow_style=None, width=120)
    return text


def _given(config: NllbMoeConfig) -> dict[str, Any]:
    """Return the fields that are not as by default."""
    usual = NllbMoeConfig()
    values = asdict(config)
    return {each.name: values[each.name] for each in fields(config) if values[each.name] != getattr(usual, each.name)}


def _tokenizer(folder: Path, *, vocabulary: int) -> dict[str, Any]:
    """Return the fields of the tokenizer; none where the folder's is not NLLB's.

    A trimmed one is no sentencepiece model, that of M2M-100 has a table of its own and no languages by their codes.
    """
    if not (folder / SENTENCEPIECE).exists():
        return {}
    tokenizer = load_tokenizer(folder)
    codes = {each.token for each in all_languages()}
    added = {number: token for token, number in tokenizer.get_added_vocab().items() if number >= _PIECES_BEFORE}
    languages = [token for _, token in sorted(added.items()) if token in codes]
    if not languages:
        return {}
    last = max(number for number, token in added.items() if token in codes)
    if vocabulary - last - 1 == len(_INTERNAL):
        added |= {last + 1 + number: symbol for number, symbol in enumerate(_INTERNAL)}
    symbols = [f"__{token}__" if token in codes else token for _, token in sorted(added.items())]
    return {
        TOKENIZER: str(folder / SENTENCEPIECE),
        "tokenizer_family": NLLB_MOE_FAMILY,
        "tokenizer_config": {
            "langs": languages,
            "default_lang": "eng_Latn" if "eng_Latn" in languages else languages[0],
            "control_symbols": symbols,
        },
    }
