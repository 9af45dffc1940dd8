"""What a family file must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nllb_prune.model.blocks import Blocks
from nllb_prune.model.decoding_sizes import DecodingSizes
from nllb_prune.model.families.layer_names import LayerNames
from nllb_prune.model.spec import ModelSpec
from nllb_prune.weights.original_layout import OriginalLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """Widths of the experts of a stack."""

    d_model: int
    ffn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Where a family keeps its sparse layers; paths and tensor names are those of the transformers class."""

    model_type: str
    """As in `config.json`."""
    spec: Callable[[Any], ModelSpec]
    """Configuration -> spec without fingerprint; raises `UsageError` on routing rules that are not covered."""
    expert_shape: Callable[[Any, str], ExpertShape]
    """(configuration, stack) -> widths."""
    sparse_path: Callable[[str, int], str]
    """(stack, layer index) -> path of the module that the sparse layer replaces."""
    router_tensors: Callable[[str], dict[str, str]]
    """Path of a sparse layer -> tensor name of each router parameter (`router_weight`, `router_bias`)."""
    expert_tensors: Callable[[str, int], dict[str, str]]
    """(path of a sparse layer, expert) -> tensor name of each parameter of the bank."""
    wrap_output: Callable[[Tensor], Any] | None
    """Makes of the sparse layer's output what the surrounding layer expects; `None` if that is the tensor."""
    tied: Callable[[Any], tuple[tuple[str, ...], ...]]
    """Configuration -> groups of parameter names that are one tensor."""
    blocks: Callable[[nn.Module], Blocks] | None = None
    """Model -> its blocks; without them it is decoded by transformers' `generate`."""
    layer_names: LayerNames | None = None
    """Of a pre-norm encoder and decoder with sinusoidal positions, as M2M-100 has; `None` of another architecture."""
    decoding_sizes: Callable[[Any], DecodingSizes] | None = None
    """Configuration -> the widths that the memory of decoding depends on; comes with `blocks`."""
    ignored: tuple[str, ...] = ()
    """Ends of tensor names that checkpoints may hold and models do not."""
    base_prefix: str = "model."
    """Prefix that some checkpoints lack."""
    original: OriginalLayout | None = None
    """Tensor names of the checkpoints that the authors gave out, if they can be read."""
