"""What the writer writes is what the safetensors library, transformers and sha256sum read."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils.hub import get_checkpoint_shard_files

from nllb_prune.errors import UsageError
from nllb_prune.weights.manifest import Manifest
from nllb_prune.weights.safetensors_file import index_safetensors
from nllb_prune.weights.shards import OutputTensor
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.writer import CheckpointWriter

from .writing import DTYPES, content_of, copied, made, random_tensor, raw_bytes, store, write_checkpoint

TENSORS = {f"layer.{number}.weight": torch.full((10, 10), float(number)) for number in range(10)}
OUTPUTS = [made(name, tensor) for name, tensor in TENSORS.items()]


def read_all(folder):
    """Every tensor of a folder by the safetensors library, file by file in their order."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        here = load_file(path)
        assert not here.keys() & found.keys()
        found |= here
    return found


def names_in(path):
    """The tensors of a file in the order of their bytes."""
    with safe_open(path, framework="pt") as file:
        return list(file.offset_keys())


@st.composite
def checkpoints(draw):
    shapes = st.lists(st.integers(0, 7), max_size=3)
    count = draw(st.integers(1, 12))
    tensors = {
        f"t{n}.ü": random_tensor(draw(st.sampled_from(DTYPES)), tuple(draw(shapes)), seed=n) for n in range(count)
    }
    parts = [draw(st.integers(0, 3)) for _ in tensors]
    return tensors, parts, draw(st.lists(st.booleans(), min_size=count, max_size=count)), draw(st.integers(1, 3000))


@given(checkpoints())
@settings(max_examples=40, deadline=None)
def test_any_tensors_in_any_parts_come_back(drawn):
    tensors, places, stored, shard_bytes = drawn
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {each.name: copied(each) for each in store(folder / "source.bin", tensors)}
        outputs = [sources[n] if s else made(n, t) for (n, t), s in zip(tensors.items(), stored, strict=True)]
        parts = {f"part {p}": [o for o, q in zip(outputs, places, strict=True) if q == p] for p in sorted(set(places))}
        write_checkpoint(folder / "out", parts, shard_bytes=shard_bytes)
        found = read_all(folder / "out")
        assert found.keys() == tensors.keys()
        for each, tensor in tensors.items():
            assert (found[each].dtype, found[each].shape) == (tensor.dtype, tensor.shape)
            assert raw_bytes(found[each]) == raw_bytes(tensor)
        files = sorted((folder / "out").glob("*.safetensors"))
        assert all(path.stat().st_size <= shard_bytes or len(names_in(path)) == 1 for path in files)
        # in order, file by file; within a file the widest may have to be first, and empty ones have no place
        order = [o.name for part in parts.values() for o in part]
        assert [n for path in files for n in sorted(names_in(path), key=order.index)] == order
        for path in files:
            begun = [n for n in names_in(path) if tensors[n].numel()]
            plain = sorted(begun, key=order.index)
            assert begun in (plain, sorted(plain, key=lambda n: -tensors[n].dtype.itemsize))
            assert all(each.offset % each.dtype.itemsize == 0 for each in index_safetensors(path).values())


@pytest.mark.parametrize(
    "tensors",
    [TENSORS, {"odd": torch.zeros(3, dtype=torch.int8), "wide": torch.ones(2)}, {"nothing": torch.zeros(0, 4)}],
    ids=["floats", "unaligned", "empty"],
)
def test_a_file_is_laid_out_as_the_library_does(tensors, tmp_path):
    outputs = [made(*each) for each in sorted(tensors.items(), key=lambda each: (-each[1].dtype.itemsize, each[0]))]
    write_checkpoint(tmp_path / "out", {"all": outputs}, shard_bytes=10**6)
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_transformers_finds_every_tensor_through_the_index(tmp_path):
    write_checkpoint(tmp_path / "out", {"first": OUTPUTS[:7], "second": OUTPUTS[7:]}, shard_bytes=1500)
    index = tmp_path / "out" / "model.safetensors.index.json"
    files, metadata = get_checkpoint_shard_files(tmp_path / "out", index)
    assert [Path(file).name for file in files] == [f"model-{n:05}-of-00006.safetensors" for n in range(1, 7)]
    assert metadata["all_checkpoint_keys"] == list(metadata["weight_map"])
    assert metadata["total_size"] == 10 * 400
    for name, file in metadata["weight_map"].items():
        with safe_open(tmp_path / "out" / file, framework="pt") as shard:
            assert torch.equal(shard.get_tensor(name), TENSORS[name])


def test_one_file_has_no_index(tmp_path):
    write_checkpoint(tmp_path / "out", {"all": OUTPUTS, "nothing": []}, shard_bytes=10**6)
    assert sorted(content_of(tmp_path / "out")) == ["config.json", "manifest.json", "model.safetensors"]
    assert not (tmp_path / "out.partial").exists()


def test_files_of_other_names_are_numbered_on_their_own(tmp_path):
    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=1500) as writer:
        writer.write("dense of 1", OUTPUTS[:1], name="dense")
        writer.write("side of 1", OUTPUTS[1:3], name="encoder.eng_Latn")
        writer.write("dense of 2", [], name="dense")
        writer.write("side of 2", OUTPUTS[3:8], name="encoder.eng_Latn")
        writer.write("other side", OUTPUTS[1:2], name="encoder.deu_Latn")  # shared with the first
        parts = writer.parts()
        writer.finish({})
    assert parts == {
        "dense": ("dense.safetensors",),
        "encoder.eng_Latn": tuple(f"encoder.eng_Latn-{n:05}-of-00004.safetensors" for n in range(1, 5)),
        "encoder.deu_Latn": ("encoder.deu_Latn.safetensors",),
    }
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == {f for p in parts.values() for f in p}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 8 * 400
    assert index["weight_map"]["layer.1.weight"] == "encoder.eng_Latn-00001-of-00004.safetensors"


def test_sha256sum_agrees_with_the_manifest(tmp_path):
    manifest = write_checkpoint(tmp_path / "out", {"all": OUTPUTS}, shard_bytes=1500, settings={"model": "mini"})
    lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in manifest.files.items())
    done = subprocess.run(
        ["sha256sum", "--check", "--strict"],
        input=lines.encode(),
        cwd=tmp_path / "out",
        capture_output=True,
        check=True,
    )
    assert done.stdout.count(b": OK\n") == len(manifest.files) == 7
    assert manifest == Manifest.load(tmp_path / "out")
    assert manifest.settings == {"model": "mini", "shard_bytes": 1500}
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        name: len(content) for name, content in content_of(tmp_path / "out").items() if name != "manifest.json"
    }
    assert manifest.weight_bytes == sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))


def test_equal_input_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, {"a": OUTPUTS[:5], "b": OUTPUTS[5:]}, shard_bytes=900, settings={"x": 1})
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_small_files_are_bytes_or_copied(tmp_path):
    (tmp_path / "license").write_bytes(b"free")
    write_checkpoint(tmp_path / "out", {"all": OUTPUTS}, files={"a.json": b"{}", "LICENSE": tmp_path / "license"})
    assert content_of(tmp_path / "out")["LICENSE"] == b"free"
    assert content_of(tmp_path / "out")["a.json"] == b"{}"


def test_progress_steps_once_for_each_tensor(tmp_path):
    seen = []

    def progress(tensors):
        for tensor in tensors:
            yield tensor
            seen.append(tensor.name)

    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900) as writer:
        writer.write("all", OUTPUTS, progress=progress)
    assert seen == list(TENSORS)


def test_between_kinds_of_file_systems_bytes_are_the_same(tmp_path):
    """Where the kernel does not copy by itself; `/dev/shm` is another file system."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("needs /dev/shm")
    tensors = {"big": random_tensor(torch.uint8, (700_001,), seed=0), "small": torch.ones(3)}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        write_checkpoint(tmp_path / "out", {"all": [copied(s) for s in store(Path(name) / "source", tensors)]})
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_all(tmp_path / "out").items())


def test_a_finished_part_is_not_written_again(tmp_path):
    with CheckpointWriter(tmp_path / "out", settings={"x": 1}, shard_bytes=900) as writer:
        assert not writer.finished("a")
        writer.write("a", OUTPUTS[:5])
        writer.write("empty", [])
        assert writer.finished("a")
    with CheckpointWriter(tmp_path / "out", settings={"x": 1}, shard_bytes=900) as writer:
        assert (writer.finished("a"), writer.finished("empty"), writer.finished("b")) == (True, True, False)
        writer.write("a", [refuses(each) for each in OUTPUTS[:5]])
        writer.write("b", OUTPUTS[5:])
        writer.finish({})
    write_checkpoint(
        tmp_path / "once",
        {"a": OUTPUTS[:5], "empty": [], "b": OUTPUTS[5:]},
        shard_bytes=900,
        settings={"x": 1},
        files={},
    )
    assert content_of(tmp_path / "out") == content_of(tmp_path / "once")


def refuses(output):
    def content():
        raise AssertionError(f"{output.name} is made again")

    return OutputTensor(name=output.name, dtype=output.dtype, shape=output.shape, content=content)


def test_a_lost_shard_is_written_again_in_its_place(tmp_path):
    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900) as writer:
        writer.write("a", OUTPUTS[:6])
        writer.write("b", OUTPUTS[6:])
    shards = sorted((tmp_path / "out.partial" / "shards").iterdir())
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    (tmp_path / "out.partial" / "shards" / "00000-00001.tmp").write_bytes(b"half")
    journal = tmp_path / "out.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"part":"half of a li')
    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900) as writer:
        assert not list((tmp_path / "out.partial").rglob("*.tmp"))
        assert (writer.finished("a"), writer.finished("b")) == (False, True)
        with pytest.raises(UsageError, match="`a` must be whole before a checkpoint is finished"):
            writer.finish({})
    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900) as writer:
        writer.write("a", OUTPUTS[:6])
    parts = {"a": [refuses(each) for each in OUTPUTS[:6]], "b": [refuses(each) for each in OUTPUTS[6:]]}
    write_checkpoint(tmp_path / "out", parts, shard_bytes=900)
    write_checkpoint(tmp_path / "once", {"a": OUTPUTS[:6], "b": OUTPUTS[6:]}, shard_bytes=900)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "once")


def wrong_dtype():
    return OutputTensor(name="x", dtype=torch.float16, shape=(2,), content=lambda: torch.zeros(2))


def wrong_shape():
    return OutputTensor(name="x", dtype=torch.float32, shape=(3,), content=lambda: torch.zeros(2))


def missing_file():
    path = Path("/nowhere/weights.bin")
    return copied(StoredTensor(name="x", path=path, offset=0, dtype=torch.float32, shape=(2,)))


def cut_file():
    return copied(StoredTensor(name="x", path=Path(__file__), offset=0, dtype=torch.uint8, shape=(10**6,)))


def failing():
    return OutputTensor(name="x", dtype=torch.float32, shape=(1,), content=lambda: Path("/nowhere/x").read_bytes())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_dtype, r"`x` must be of float16 and shape \(2,\), but is of float32 and shape \(2,\) instead"),
        (wrong_shape, r"`x` must be of float32 and shape \(3,\), but is of float32 and shape \(2,\) instead"),
        (missing_file, r"`/nowhere/weights.bin` must hold `x`, but cannot be read \(No such file or directory\)"),
        (cut_file, r"test_writer.py` must hold `x` up to byte 1,000,000, but ends at byte"),
        (failing, r"`x` must be read, but cannot be"),
    ],
)
def test_what_cannot_be_written_ends_with_one_line_and_loses_nothing(make, message, tmp_path):
    writer = CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900)
    writer.write("good", OUTPUTS[:4])
    with pytest.raises(UsageError, match=message) as caught:
        writer.write("bad", [*OUTPUTS[4:], make()])
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out.partial").rglob("*.tmp"))
    again = CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900)
    assert (again.finished("good"), again.finished("bad")) == (True, False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": [OUTPUTS[0], OUTPUTS[0]]}, "`layer.0.weight` must be written once, but is in a and again in a"),
        ({"a": OUTPUTS[:2], "b": OUTPUTS[1:]}, "`layer.1.weight` must be written once, but is in a and again in b"),
        ({}, "`tensors` must be written before a checkpoint is finished"),
    ],
)
def test_wrong_calls_are_refused(parts, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write_checkpoint(tmp_path / "out", parts)
    assert not (tmp_path / "out").exists()


def test_a_name_that_a_killed_run_wrote_elsewhere_is_refused(tmp_path):
    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900) as writer:
        writer.write("a", OUTPUTS[:2])
    with pytest.raises(UsageError, match="is in a and again in b"):
        write_checkpoint(tmp_path / "out", {"b": OUTPUTS[1:]}, shard_bytes=900)


@pytest.mark.parametrize("tensors", [OUTPUTS[:6], [*OUTPUTS[:3], *OUTPUTS[4:5]]], ids=["more", "others"])
def test_a_part_that_changed_is_refused(tensors, tmp_path):
    with CheckpointWriter(tmp_path / "out", settings={}, shard_bytes=900) as writer:
        writer.write("a", OUTPUTS[:4])
    with pytest.raises(UsageError, match="`a` must have the tensors that it had when a killed run wrote some of them"):
        write_checkpoint(tmp_path / "out", {"a": tensors}, shard_bytes=900)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"sub/a.json": b""}, "`files` must have plain names, without a folder, but one is 'sub/a.json'"),
        ({".hidden": b""}, "`files` must have plain names"),
        ({"model.safetensors": b""}, "`model.safetensors` must be one file of the checkpoint"),
        ({"manifest.json": b""}, "`manifest.json` must be one file of the checkpoint"),
        ({"a": Path("/nowhere/a")}, r"`/nowhere/a` must be a file to copy, but cannot be read \(No such file"),
    ],
)
def test_wrong_small_files_are_refused_and_nothing_is_lost(files, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write_checkpoint(tmp_path / "out", {"all": OUTPUTS}, files=files)
    assert not (tmp_path / "out").exists()
    write_checkpoint(tmp_path / "out", {"all": [refuses(each) for each in OUTPUTS]})
    assert read_all(tmp_path / "out").keys() == TENSORS.keys()


def test_memory_does_not_grow_with_what_is_copied(tmp_path):
    """In a process of its own: 300 MB are copied by one that may take 30 MB more than it has."""
    shutil.copy(Path(__file__).with_name("writing.py"), tmp_path / "writing.py")
    script = """
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from writing import copied, write_checkpoint
from nllb_prune.weights.safetensors_file import index_safetensors
from nllb_prune.weights.stored import StoredTensor
folder = Path(sys.argv[1])
with (folder / "source").open("wb") as file:
    file.truncate(300_000_000)
def part(name, size):
    return [copied(StoredTensor(name=name, path=folder / "source", offset=0, dtype=torch.uint8, shape=(size,)))]
write_checkpoint(folder / "first", {"a": part("a", 1000)})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_checkpoint(folder / "second", {"a": part("a", 300_000_000)})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=True)
    assert int(done.stdout) < 30_000
    assert (tmp_path / "second" / "model.safetensors").stat().st_size > 300_000_000
