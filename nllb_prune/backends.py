"""Which library's modules a model is made of: transformers', or fairseq2's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from nllb_prune.model.facts import ModelFacts
    from nllb_prune.model.spec import ModelSpec

TRANSFORMERS: Final = "transformers"
FAIRSEQ2: Final = "fairseq2"
BACKENDS: Final = (TRANSFORMERS, FAIRSEQ2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where models come from."""

    name: str
    load_model: Callable[..., nn.Module]
    """(path or id, `masks`, `direction`, `dtype`, `device`) -> model."""
    load_facts: Callable[..., ModelFacts]
    """(path or id, `dtype`, `device`) -> what results of the model depend on."""
    load_spec: Callable[[Any], ModelSpec]
    """(path or id) -> what a sparse model is; refuses a dense one, and reads no experts."""
    in_parts: Callable[[Any], bool]
    """(path or id) -> whether it is a pruned checkpoint with a file for each language side."""
    load_tokenizer: Callable[[Any], Any]
    """(path or id) -> tokenizer, called as those of transformers are."""


def named_backend(name: str = TRANSFORMERS) -> Backend:
    """Return a backend by name.

    Raises:
        UsageError: if there is none of that name, or its library is missing.
    """
    if name == TRANSFORMERS:
        from nllb_prune.model.loading import in_parts, load_facts, load_model, load_spec
        from nllb_prune.model.source import load_tokenizer

        return Backend(
            name=name,
            load_model=load_model,
            load_facts=load_facts,
            load_spec=load_spec,
            in_parts=in_parts,
            load_tokenizer=load_tokenizer,
        )
    if name != FAIRSEQ2:
        raise UsageError(f"`backend` must be one of {', '.join(BACKENDS)}, but is {name} instead.")
    from nllb_prune.on_fairseq2.needed import need_fairseq2

    need_fairseq2()
    if not sys.stderr.isatty():
        os.environ.setdefault("FAIRSEQ2_NO_PROGRESS", "1")  # its bar leaves empty lines where there is no terminal
    from nllb_prune.on_fairseq2 import loading
    from nllb_prune.on_fairseq2.card_tokenizer import load_tokenizer as load_card_tokenizer

    return Backend(
        name=name,
        load_model=loading.load_model,
        load_facts=loading.load_facts,
        load_spec=loading.load_spec,
        in_parts=loading.in_parts,
        load_tokenizer=load_card_tokenizer,
    )
