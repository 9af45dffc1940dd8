"""Write a trained network as a transformers folder: configuration, float16 weights, tokenizer.

`python -m eval.mini.export --trained DIR --tokenizer DIR --output DIR [--dense]`; `--trained` holds `final.pt`, or
`checkpoint.pt` of a training that is still running.
"""

from __future__ import annotations

import argparse
import shutil
import tomllib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .network import NetworkSettings, state_for_transformers
from .tokenizer import RECIPE
from .train import new_network, phase_settings

_TOKENIZER_FILES = (
    "sentencepiece.bpe.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def configuration(settings: NetworkSettings) -> Any:
    """Return the transformers configuration of a network."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": settings.vocabulary,
        "d_model": settings.d_model,
        "encoder_layers": settings.encoder_layers,
        "decoder_layers": settings.decoder_layers,
        "encoder_attention_heads": settings.heads,
        "decoder_attention_heads": settings.heads,
        "encoder_ffn_dim": settings.ffn,
        "decoder_ffn_dim": settings.ffn,
        "activation_function": "relu",
        "dropout": settings.dropout,
        "max_position_embeddings": 512,
        "scale_embedding": True,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "bos_token_id": 0,
        "pad_token_id": settings.pad,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "tie_word_embeddings": True,
    }
    if settings.experts == 0:
        return transformers.M2M100Config(architectures=["M2M100ForConditionalGeneration"], **common)
    return transformers.NllbMoeConfig(
        architectures=["NllbMoeForConditionalGeneration"],
        num_experts=settings.experts,
        expert_capacity=64,
        encoder_sparse_step=settings.encoder_sparse_step,
        decoder_sparse_step=settings.decoder_sparse_step,
        moe_token_dropout=settings.expert_output_masking,
        moe_eval_capacity_token_fraction=1.0,
        router_dtype="float32",
        **common,
    )


def generation_configuration() -> Any:
    """Return the defaults of `generate`: greedy, and longer than transformers' 20 tokens."""
    import transformers

    return transformers.GenerationConfig(
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, max_new_tokens=128
    )


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPE, metavar="FILE", help="(default: that of mini)")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--phase", type=int, help="of the recipe that trained it (default: the last)")
    options = parser.parse_args()
    recipe = tomllib.loads(options.recipe.read_text(encoding="utf-8"))
    final = options.trained / "final.pt"
    source = final if final.exists() else options.trained / "checkpoint.pt"
    weights = torch.load(source, weights_only=True)["network"]
    settings = phase_settings(recipe, options.phase or len(recipe["phases"]))
    vocabulary = weights["shared.weight"].shape[0]
    network = new_network(recipe, settings, vocabulary=vocabulary, dense=options.dense)
    network.load_state_dict(weights)
    options.output.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in state_for_transformers(network).items()}
    save_file(state, options.output / "model.safetensors", metadata={"format": "pt"})
    configuration(network.settings).save_pretrained(options.output)
    generation_configuration().save_pretrained(options.output)
    for name in _TOKENIZER_FILES:
        shutil.copyfile(options.tokenizer / name, options.output / name)


if __name__ == "__main__":
    main()
