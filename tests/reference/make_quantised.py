"""Freeze what compressed-tensors 0.20.0 makes of matrices in the layouts of `int8` and `int4`.

    pip install compressed-tensors==0.20.0 && python tests/reference/make_quantised.py

The scales are given: theirs are not rounded to bfloat16. What theirs would be is frozen too.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torch import Tensor

from nllb_prune.model.quantisation import SCHEMES, Scheme, quantised

ROWS, COLUMNS = 12, 192
PATH = Path(__file__).parent / "quantised.safetensors"


def draw() -> Tensor:
    """Draw weights with a row of zeros, one with an outlier, and rows of all magnitudes."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(7))
    weight *= torch.logspace(-6, 3, ROWS)[:, None]
    weight[3] = 0
    weight[5, 17] *= 100
    return weight


def freeze(weight: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    """Return what the library stores for a matrix and reads from that, by name."""
    described = scheme.to_json()
    arguments = QuantizationArgs(**described["weights"])
    setting = QuantizationScheme(targets=["Linear"], weights=arguments)
    compressor = BaseCompressor.get_value_from_registry(described["format"])
    scale = quantised(weight, scheme)["_scale"]
    stored = compressor.compress({"weight": weight, "weight_scale": scale}, setting)
    groups = weight.view(ROWS, -1, scheme.group or COLUMNS)
    theirs, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    parts = {f"{scheme.name}/{name}": tensor for name, tensor in stored.items()}
    half = compressor.decompress(stored, setting)["weight"]
    single = compressor.decompress(stored | {"weight_scale": scale.float()}, setting)["weight"]
    return parts | {
        f"{scheme.name}/own_scale": theirs,
        f"{scheme.name}/bfloat16": half,
        f"{scheme.name}/float32": single,
    }


def main() -> None:
    """Write the file; what the library makes of our description of a scheme is in its metadata."""
    weight = draw()
    tensors = {"weight": weight}
    metadata = {}
    for scheme in SCHEMES.values():
        tensors |= freeze(weight, scheme)
        metadata[scheme.name] = json.dumps(QuantizationArgs(**scheme.to_json()["weights"]).model_dump(mode="json"))
    save_file(tensors, PATH, metadata=metadata)


if __name__ == "__main__":
    main()
