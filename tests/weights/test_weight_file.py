"""Places of tensors, against the libraries that wrote the files; damaged, foreign and hostile files are one line."""

import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import zipfile
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nllb_prune.errors import UsageError
from nllb_prune.weights.weight_file import WeightFile

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]
FORMS = {"model.safetensors": save_file, "model.bin": torch.save}
PLAIN = {"a": torch.arange(24.0).view(4, 6), "b": torch.tensor([1, 2, 3])}
PAYLOAD = "the pickle ran"


def random_tensor(dtype, shape, seed):
    """Any bits, those of NaN too; a bool has but two values."""
    size = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), generator=torch.Generator().manual_seed(seed))
    return bits.to(torch.uint8).view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().flatten().view(torch.uint8).tolist()


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.builds(random_tensor, st.sampled_from(DTYPES), shapes, st.integers(0, 1000))
tables = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), tensors, max_size=8)


@contextmanager
def written(content, save, name):
    with tempfile.TemporaryDirectory() as folder:
        save(content, Path(folder) / name)
        yield Path(folder) / name


def refused(path, match):
    with pytest.raises(UsageError, match=match) as raised:
        WeightFile(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


# what is read


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=40, deadline=None)
@given(content=tables)
def test_every_tensor_is_that_of_the_library(name, content):
    content.pop("__metadata__", None)  # the header's own
    with written(content, FORMS[name], name) as path:
        theirs = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        weights = WeightFile(path)
        assert set(weights) == set(theirs) == set(content)
        for key, tensor in theirs.items():
            stored = weights.stored(key)
            assert (stored.name, stored.path, stored.nbytes) == (key, path, tensor.numel() * tensor.itemsize)
            assert bits(stored.read()) == bits(tensor) == bits(weights.tensor(key))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    cut=st.tuples(st.integers(0, 4), st.integers(1, 5)),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(["whole", "same", "rows", "columns", "turned", "empty"]),
)
def test_tensors_of_one_storage(rows, columns, cut, dtype, order):
    """Tied embeddings are stored once; a view is read where it is, or refused if it is not in one piece."""
    whole = random_tensor(dtype, (rows, columns), 0)
    first, last = cut[0] % rows, cut[0] % rows + cut[1]
    views = {
        "whole": whole,
        "same": whole,
        "rows": whole[first:last],
        "columns": whole[:, :1],
        "turned": whole.t(),
        "empty": whole[:0],
    }
    content = {name: views[name] for name in order}
    with written(content, torch.save, "model.bin") as path:
        weights = WeightFile(path)
        for name, tensor in content.items():
            assert bits(weights.tensor(name)) == bits(tensor)
            if tensor.is_contiguous():
                assert bits(weights.stored(name).read()) == bits(tensor)
            else:
                with pytest.raises(UsageError, match=rf"`{name}` of `.*` must be stored in one piece"):
                    weights.stored(name)
        if whole.numel():
            assert weights.stored("whole").offset == weights.stored("same").offset


@pytest.mark.parametrize("location", ["cuda:0", "cuda:7", "mps", "xla:0"])
def test_tensors_that_were_on_another_device(tmp_path, location):
    """Training saves them from where they are; they are read on a machine without such a device."""
    torch.save({"a": PLAIN["a"]}, tmp_path / "cpu.bin")
    path = tmp_path / "other.bin"
    with zipfile.ZipFile(tmp_path / "cpu.bin") as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            if info.filename.endswith("/.format_version"):
                continue  # older versions of torch do not write it
            content, cpu = old.read(info), b"X\x03\x00\x00\x00cpu"
            assert info.filename.endswith("/data.pkl") == (cpu in content)
            new.writestr(
                info.filename, content.replace(cpu, b"X" + struct.pack("<I", len(location)) + location.encode())
            )
    weights = WeightFile(path)
    assert torch.equal(weights.stored("a").read(), PLAIN["a"])
    assert torch.equal(weights.tensor("a"), PLAIN["a"])


def test_parameters_and_settings_beside_a_table(tmp_path):
    path = tmp_path / "checkpoint.pt"
    table = {"a": torch.nn.Parameter(PLAIN["a"])}
    torch.save({"args": Namespace(lr=0.1, moe=Namespace(experts=4)), "model": table, "state": {"a": PLAIN["b"]}}, path)
    weights = WeightFile(path, part="model")
    assert list(weights) == ["a"]
    assert torch.equal(weights.stored("a").read(), PLAIN["a"])
    with pytest.raises(UsageError, match="`optimizer` of it holds something else than tensors by name"):
        WeightFile(path, part="optimizer")


def test_mapped_tensors_may_be_changed_and_the_file_stays(tmp_path):
    save_file(PLAIN, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    WeightFile(tmp_path / "model.safetensors").tensor("a").zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


# how much is read


def bytes_read():
    """Bytes that this process has asked the system for, cached or not."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count")
@pytest.mark.parametrize("name", FORMS)
def test_only_the_bytes_of_one_expert_are_read(tmp_path, name):
    path = tmp_path / name
    FORMS[name]({f"expert_{n}": torch.full((256, 1024), float(n)) for n in range(16)}, path)
    WeightFile(path)  # what is imported at first counts too
    before = bytes_read()
    weights = WeightFile(path)
    opened = bytes_read() - before
    expert = weights.stored("expert_9").read()
    assert bytes_read() - before - opened - expert.nbytes < 4096  # reading the counter counts as well
    assert opened < 100_000 < expert.nbytes
    assert expert.eq(9).all()


def sparse_safetensors(path, gigabytes):
    """Write a file of experts of a gigabyte each, all a hole, but for the first values of the last."""
    size = 2**28
    entries = {
        f"expert_{n}": {"dtype": "F32", "shape": [size], "data_offsets": [4 * n * size, 4 * (n + 1) * size]}
        for n in range(gigabytes)
    }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.seek(4 * (gigabytes - 1) * size, os.SEEK_CUR)
        file.write(torch.arange(8.0).numpy().tobytes())
        file.truncate(8 + len(header) + 4 * gigabytes * size)


def sparse_bin(path, gigabytes):
    with torch.serialization.skip_data():  # memory that is never touched is never taken
        torch.save({f"expert_{n}": torch.empty(2**28) for n in range(gigabytes)}, path)
    with path.open("rb+") as file:
        file.seek(WeightFile(path).stored(f"expert_{gigabytes - 1}").offset)
        file.write(torch.arange(8.0).numpy().tobytes())


@pytest.mark.parametrize("write", [sparse_safetensors, sparse_bin])
def test_a_file_far_larger_than_memory(tmp_path, write):
    """Also where the system would not map it: a private mapping must fit into the memory there is."""
    gigabytes = 100
    path = tmp_path / ("model.safetensors" if write is sparse_safetensors else "model.bin")
    write(path, gigabytes)
    assert path.stat().st_size > gigabytes * 2**30
    assert path.stat().st_blocks * 512 < 2**24
    weights = WeightFile(path)
    before = bytes_read()
    stored = weights.stored(f"expert_{gigabytes - 1}")
    head = type(stored)(name="head", path=path, offset=stored.offset, dtype=stored.dtype, shape=(8,))
    assert head.read().tolist() == list(range(8))
    assert bytes_read() - before < 10_000


def test_a_file_that_cannot_be_mapped_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(PLAIN | {"large": torch.zeros(2**26)}, path)
    code = (
        "import resource, sys, torch; from pathlib import Path; from nllb_prune.weights.weight_file import WeightFile\n"
        "weights = WeightFile(Path(sys.argv[1]))\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))\n"
        "print(weights.tensor('a').tolist())\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert run.stdout.strip() == str(PLAIN["a"].tolist()), run.stderr


# what is refused


@pytest.mark.parametrize("name", FORMS)
def test_a_truncated_file_is_found_when_it_is_opened(tmp_path, name):
    path = tmp_path / name
    FORMS[name](PLAIN, path)
    content = path.read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path, r"must be a whole weight file, but is truncated or damaged \(.+\); fetch it again")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(FORMS)))
def test_a_damaged_file_is_one_line_or_sound(data, name):
    """Flipped bytes in what describes the tensors: never anything but one line, never a tensor outside the file."""
    with written(PLAIN, FORMS[name], name) as path:
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            weights = WeightFile(path)
            places = {key: weights.stored(key) for key in weights}
        except UsageError as error:
            lines, places = str(error).split("\n"), {}
            assert len(lines) == 1
        for key, stored in places.items():
            assert 0 <= stored.offset <= stored.offset + stored.nbytes <= len(content)
            assert bits(stored.read()) == bits(weights.tensor(key))


def header_of(**entries):
    return json.dumps(entries).encode()


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (header_of(a=entry()), 7),
        (header_of(a=entry()), 9),
        (header_of(a=entry(begin=4, end=12)), 12),
        (header_of(a=entry(begin=8, end=0)), 8),
        (header_of(a=entry(begin=-8, end=0)), 8),
        (header_of(a=entry(end=4)), 4),
        (header_of(a=entry(shape=(3,))), 8),
        (header_of(a=entry(shape=(-2,))), 8),
        (header_of(a=entry(shape=(2**62, 8))), 8),
        (header_of(a=entry(), b=entry()), 8),
        (header_of(a=entry(), b=entry(begin=12, end=20)), 20),
        (header_of(a=entry(), b=entry(begin=4, end=12)), 12),
        (header_of(a=entry(dtype="F31")), 8),
        (header_of(a=entry(dtype="F8_E8M0", shape=(8,))), 8),
        (header_of(a={}), 0),
        (header_of(a=[]), 0),
        (b"[]", 0),
        (b"{", 0),
        (b"\xff\xff", 0),
        (b"", 0),
    ],
)
def test_a_wrong_header(tmp_path, header, size):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    refused(path, "must be a whole weight file, but is truncated or damaged")


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8 + 1, 1000])
def test_a_header_that_is_too_long(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    refused(path, "must be a whole weight file, but is truncated or damaged")


def packed_again(path, target, **changes):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = changes.get(info.filename.rpartition("/")[2], old.read(info))
            compressed = "data" in changes and "/data/" in info.filename
            new.writestr(info.filename, content, zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data": b""}, r"holds them compressed or encrypted \(`model/data/0`\); load it with torch and save it again"),
        ({"byteorder": b"big"}, "must be little-endian, but is of a big-endian machine instead; load it"),
        ({}, "must be as `torch.save` writes it, but was packed again by another program; load it with torch"),
        ({"0": b"short"}, "must be"),
    ],
)
def test_an_archive_that_torch_did_not_write(tmp_path, changes, match):
    torch.save(PLAIN, tmp_path / "model.bin")
    packed_again(tmp_path / "model.bin", tmp_path / "other.bin", **changes)
    refused(tmp_path / "other.bin", match)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"model": PLAIN}, {"step": 3}, torch.zeros(2), 7])
def test_content_that_is_no_table(tmp_path, content):
    torch.save(content, tmp_path / "model.bin")
    refused(tmp_path / "model.bin", "it holds something else than tensors by name")


def test_a_sparse_tensor(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "model.bin")
    refused(tmp_path / "model.bin", "must be a whole weight file")


def test_the_older_format(tmp_path):
    torch.save(PLAIN, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    refused(tmp_path / "model.bin", r"must be in torch's zip format.*older one instead; load it with torch")


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_a_folder_and_a_missing_file(tmp_path, name):
    refused(tmp_path / name, "must be a file to read, but is not")
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "must be a")


class Hostile:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return (os.system, (f"echo {PAYLOAD} > {self.proof}",))


def hostile_zip(path, proof):
    torch.save(PLAIN | {"evil": Hostile(proof)}, path)


def hostile_shared(path, proof):
    torch.save({"args": Namespace(evil=Hostile(proof)), "model": PLAIN}, path)


def hostile_pickle(path, proof):
    path.write_bytes(pickle.dumps(Hostile(proof)))


@pytest.mark.parametrize("write", [hostile_zip, hostile_shared, hostile_pickle])
def test_code_is_named_and_never_run(tmp_path, write):
    path, proof = tmp_path / "model.pt", tmp_path / "proof"
    write(path, proof)
    refused(path, "must be a whole weight file, but .*holds code, not weights")
    assert not proof.exists()
    with path.open("rb") as file:  # and it would have run
        if zipfile.is_zipfile(file):
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
    assert proof.read_text().strip() == PAYLOAD


def test_the_name_of_the_code_is_told(tmp_path):
    hostile_zip(tmp_path / "model.bin", tmp_path / "proof")
    refused(tmp_path / "model.bin", r"`(posix|nt)\.system`\. Nothing of it was run; if you trust it, load it with the")
