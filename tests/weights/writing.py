"""Tensors to write, for the tests of the writer."""

import random
from functools import partial

import torch

from nllb_prune.weights.shards import OutputTensor
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.writer import CheckpointWriter

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int32, torch.float64, torch.bool)


def raw_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype, shape, seed):
    count = torch.Size(shape).numel() * dtype.itemsize
    content = bytearray(random.Random(seed).randbytes(count))
    if dtype == torch.bool:
        content = bytearray(each & 1 for each in content)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).view(shape)


def store(path, tensors):
    """Put the bytes of tensors into a file with gaps, and return where they are."""
    found, content = [], bytearray(b"gap")
    for name, tensor in tensors.items():
        found.append(
            StoredTensor(name=name, path=path, offset=len(content), dtype=tensor.dtype, shape=tuple(tensor.shape))
        )
        content += raw_bytes(tensor) + b"gap"
    path.write_bytes(content)
    return found


def copied(stored):
    return OutputTensor(name=stored.name, dtype=stored.dtype, shape=stored.shape, content=stored)


def made(name, tensor):
    return OutputTensor(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), content=partial(torch.clone, tensor))


def write_checkpoint(folder, parts, *, shard_bytes=10_000, settings=None, files=None, **options):
    """Write parts (name -> tensors to write) and finish."""
    with CheckpointWriter(folder, settings=settings or {}, shard_bytes=shard_bytes, **options) as writer:
        for part, tensors in parts.items():
            writer.write(part, tensors)
        return writer.finish({"config.json": b"{}\n"} if files is None else files)


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
