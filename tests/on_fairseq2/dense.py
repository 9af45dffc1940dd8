"""`mini-dense` as fairseq2's own dense family takes it: a card and one `.pt` file, in two layouts."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from nllb_prune.model.source import model_folder
from nllb_prune.on_fairseq2.card import card_of, card_text

SHARED = ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection")
KEPT = (
    "model_dim",
    "vocab_size",
    "num_encoder_layers",
    "num_decoder_layers",
    "num_encoder_attn_heads",
    "num_decoder_attn_heads",
)


def save_dense_cards(folder: Path) -> Path:
    """Write `fairseq.yaml`, of a checkpoint with the names that fairseq wrote, and `fairseq2.yaml`, with fairseq2's."""
    torch.save({"model": _fairseq_tensors()}, folder / "fairseq.pt")
    torch.save(_fairseq2_tensors(), folder / "fairseq2.pt")
    card = card_of("mini-dense")
    size = card["model_config"]
    config = {**{name: size[name] for name in KEPT}, "ffn_inner_dim": size["encoder_ffn_inner_dim"]}
    for layout in ("fairseq", "fairseq2"):
        own = {"name": f"dense-{layout}", "model_family": "nllb", "model_config": config, "checkpoint": f"{layout}.pt"}
        (folder / f"{layout}.yaml").write_text(card_text(card | own), encoding="utf-8")
    return folder


def _fairseq_tensors() -> dict[str, torch.Tensor]:
    tensors = {
        name.removeprefix("model."): tensor.float()
        for name, tensor in load_file(model_folder("mini-dense") / "model.safetensors").items()
    }
    shared = tensors.pop("shared.weight")
    tensors |= {f"{name}.weight": shared.clone() for name in SHARED}
    return tensors | {f"{stack}.version": torch.tensor([3.0]) for stack in ("encoder", "decoder")}


def _fairseq2_tensors() -> dict[str, torch.Tensor]:
    from nllb_prune.on_fairseq2.loading import load_model

    return dict(load_model("mini-dense").inner.state_dict())
