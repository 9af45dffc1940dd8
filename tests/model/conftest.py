from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nllb_prune.model.loading import load_model

REFERENCE = Path(__file__).parent.parent / "reference"
TINY = REFERENCE / "tiny"


class Reference:
    """Frozen tensors of transformers 4.57.6 in one dtype, and our model of the same checkpoint."""

    def __init__(self, name: str) -> None:
        self.dtype = getattr(torch, name)
        self.tensors = load_file(REFERENCE / f"{name}.safetensors")
        self.model = load_model(TINY, dtype=self.dtype)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def masks(self, case: str) -> dict[str, torch.Tensor] | None:
        """Kept experts by stack (sentences or 1, layers, experts); the reference has encoder layers first."""
        if case == "full":
            return None
        kept = self["masks/kept"][:1] if case == "masked" else self["masks/kept"][self["masks/rows"]]
        return {"encoder": kept[:, :2], "decoder": kept[:, 2:]}


@pytest.fixture(scope="session")
def float32():
    return Reference("float32")


@pytest.fixture(scope="session")
def bfloat16():
    return Reference("bfloat16")
