"""Checkpoints with the tensor names, shapes and files of a real one; most of them holes in sparse files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nllb_prune.model.source import model_folder

from .shapes import Shape
from .values import drawn_rows, values

Format = Literal["bin", "safetensors"]
SHARD_SIZE = "10GB"
"""What transformers took for the largest file in 2023."""
_PATTERNS = {"bin": "pytorch_model{suffix}.bin", "safetensors": "model{suffix}.safetensors"}
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_MOST_NEW_TOKENS = 32  # random weights do not end a sentence


def generate(
    output: Path,
    *,
    shape: Shape,
    format: Format,
    dtype: str = "float32",
    random_layers: int | None = None,
    seed: int = 0,
    shard_size: str = SHARD_SIZE,
) -> None:
    """Write a checkpoint; nothing stands under its name before all of it does.

    Args:
        output: Folder to write.
        shape: Of the model.
        format: `bin` as `NllbMoeModel.save_pretrained` wrote in 2023: no prefix, all three names of the embedding.
            `safetensors` as `NllbMoeForConditionalGeneration` writes today: prefix, one name.
        dtype: Of the weights.
        random_layers: As for `drawn_rows`.
        seed: Of all values.
        shard_size: Of a weight file.

    Raises:
        FileExistsError: if there is such a folder.
    """
    if output.exists():
        raise FileExistsError(f"`{output}` must be a new folder, but is there already.")
    beside = output.with_name(f"{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    tensors = tensors_of(shape, bare=format == "bin", dtype=dtype)
    plan = files_of(tensors, format, shard_size=shard_size)
    if plan.is_sharded:
        _write_index(beside / (_PATTERNS[format].format(suffix="") + ".index.json"), plan)
    for file, names in plan.filename_to_tensors.items():
        places = (_write_bin if format == "bin" else _write_safetensors)(beside / file, tensors, names)
        with (beside / file).open("r+b") as opened:
            for name, offset in places.items():
                opened.seek(offset)
                opened.write(_content(name, tensors[name], shape, random_layers=random_layers, seed=seed))
    _write_small_files(beside, shape.config(bare=format == "bin", dtype=dtype))
    beside.rename(output)


def tensors_of(shape: Shape, *, bare: bool, dtype: str) -> dict[str, Tensor]:
    """Return the tensors by name, in the order of transformers' class, on the meta device."""
    from transformers import AutoConfig, NllbMoeForConditionalGeneration, NllbMoeModel

    content = shape.config(bare=bare, dtype=dtype)
    config = AutoConfig.for_model(content.pop("model_type"), **content)
    with torch.device("meta"):
        model = (NllbMoeModel if bare else NllbMoeForConditionalGeneration)(config)
    tied = ("embed_tokens.weight", "lm_head.weight")
    kept = {name: each for name, each in model.state_dict().items() if bare or not name.endswith(tied)}
    return {name: each.to(getattr(torch, dtype)) for name, each in kept.items()}


def files_of(tensors: Mapping[str, Tensor], format: Format, *, shard_size: str = SHARD_SIZE) -> Any:
    """Return which tensors are in which file.

    They fill one file after the other, and each name of the embedding counts: so NLLB-MoE 54B has its 23 files.
    """
    return split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=_PATTERNS[format], max_shard_size=shard_size
    )


def _write_index(path: Path, plan: Any) -> None:
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_bin(path: Path, tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, int]:
    """Write a file of `torch.save` without the values, and return where those of each storage begin."""
    with FakeTensorMode():
        made = {name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype) for name in names}
        for name in names:
            if name.endswith("encoder.embed_tokens.weight") and "shared.weight" in made:
                made[name] = made["shared.weight"]  # one storage, as in a model
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(made, path)
        read: dict[str, Any] = torch.load(path, weights_only=True)
        return {name: each.untyped_storage()._checkpoint_offset for name, each in read.items()}


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor], names: list[str]) -> dict[str, int]:
    """Write a safetensors file without the values, and return where those of each tensor begin."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(start + end)
    return {name: start + header[name]["data_offsets"][0] for name in names}


def _content(name: str, tensor: Tensor, shape: Shape, *, random_layers: int | None, seed: int) -> bytes:
    """Return the bytes of the rows that have values; there may be none."""
    rows = drawn_rows(name, tensor.shape[0], shape, random_layers=random_layers)
    drawn = values(name, (rows, *tensor.shape[1:]), seed=seed) if rows else torch.empty(0)
    return drawn.to(tensor.dtype).view(torch.uint8).numpy().tobytes()


def _write_small_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration, and the tokenizer of `mini`."""
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    ids = {name: config[name] for name in ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")}
    generation = json.dumps({**ids, "max_new_tokens": _MOST_NEW_TOKENS}, indent=2)
    (folder / "generation_config.json").write_text(generation + "\n", encoding="utf-8")
    for name in _TOKENIZER:
        shutil.copy(model_folder("mini") / name, folder / name)
