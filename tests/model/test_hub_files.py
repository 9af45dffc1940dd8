"""Weight files of a Hub that is a small server here: which are asked for, how many are on the disk, what goes wrong."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub import COMMIT, Hub, client_environment

TINY = Path(__file__).parent.parent / "reference" / "tiny"
TENSORS = load_file(TINY / "model.safetensors")
KINDS = {"safetensors": ("model", save_file), "bin": ("pytorch_model", torch.save)}
ALL = "everything"

CLIENT = """
import hashlib, json, sys
from pathlib import Path
import huggingface_hub
from nllb_prune.errors import UsageError
from nllb_prune.model.weight_files import weight_files

def weights_in(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return sorted(path.name for path in files if path.suffix in (".safetensors", ".bin"))

def run(model, scratch, wanted, first, keep=None, **settings):
    reply = {"tensors": {}, "during": []}
    try:
        if keep:
            huggingface_hub.snapshot_download(model, allow_patterns=[keep])
        files = weight_files(
            model, scratch=Path(scratch), wanted=lambda name: wanted in name or wanted == "everything", **settings
        )
        names = files.names()
        reply |= {"files": files.files, "revision": files.revision, "names": names, "folder": str(files.folder)}
        reply["sizes"] = [files.size(file) for file in files.files]
        for file in files.files[:first]:
            with files.opened(file) as stored:
                reply["during"].append(weights_in(scratch))
                for tensor in stored:
                    content = tensor.read().flatten().contiguous().numpy().tobytes()
                    reply["tensors"][tensor.name] = hashlib.sha256(content).hexdigest()
    except UsageError as error:
        reply["error"] = str(error)
    return reply

print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(run(**json.loads(line))), flush=True)
"""


def shard_of(name):
    """Routers in a shard of their own, each expert in one, the dense rest in another."""
    if ".router." in name:
        return "routers"
    return f"expert-{name.split('expert_')[1][0]}" if "expert_" in name else "dense"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    """A process of its own, as the Hub's address is read when its library is imported."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        env=client_environment(server, tmp_path_factory.mktemp("home")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


class Model:
    """A model on the server, and what a client gets of it."""

    def __init__(self, server, client, scratch, name):
        self.server, self.client, self.scratch = server, client, scratch
        self.id, self.folder = f"somebody/{name}", server.root / "somebody" / name
        self.folder.mkdir(parents=True)
        shutil.copy(TINY / "config.json", self.folder)
        server.forget()
        server.scratch = scratch

    def write(self, kind, *, prefix=True):
        stem, save = KINDS[kind]
        tensors = {name if prefix else name.removeprefix("model."): tensor for name, tensor in TENSORS.items()}
        weight_map = {name: f"{stem}-{shard_of(name)}.{kind}" for name in tensors}
        for file in set(weight_map.values()):
            save({name: tensors[name] for name in tensors if weight_map[name] == file}, self.folder / file)
        (self.folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return self

    def get(self, wanted=ALL, first=None, **settings):
        job = {"model": self.id, "scratch": str(self.scratch), "wanted": wanted, "first": first, **settings}
        self.client.stdin.write(json.dumps(job) + "\n")
        self.client.stdin.flush()
        return json.loads(self.client.stdout.readline())

    def left(self):
        return [path.name for path in self.scratch.rglob("*") if path.is_file()]


@pytest.fixture
def model(server, client, tmp_path):
    return Model(server, client, tmp_path / "scratch", tmp_path.name)


def content_of(tensor):
    return sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def refused(model, *parts, **settings):
    """Return the line that refuses a model of which no weight was asked for."""
    error = model.get(**settings)["error"]
    assert "\n" not in error
    assert all(part in error for part in parts), error
    assert model.server.asked == []


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_files_come_and_go_one_by_one(model, kind, prefix):
    reply = model.write(kind, prefix=prefix).get()
    files = sorted(path.name for path in model.folder.glob(f"*.{kind}"))
    assert len(files) == 10
    assert reply["files"] == files
    assert reply["sizes"] == [(model.folder / file).stat().st_size for file in files]
    assert reply["revision"] == COMMIT
    assert model.server.asked == [(file, 0) for file in files]
    assert model.server.present == [[]] * len(files)
    assert reply["during"] == [[file] for file in files]
    assert model.left() == []
    assert reply["tensors"] == {name: content_of(tensor) for name, tensor in TENSORS.items()}
    assert reply["names"].keys() == TENSORS.keys()


def test_only_files_with_a_wanted_tensor_are_fetched(model):
    reply = model.write("safetensors").get(wanted="expert_3.")
    assert reply["files"] == ["model-expert-3.safetensors"]
    assert model.server.asked == [("model-expert-3.safetensors", 0)]
    assert len(reply["names"]) == len(TENSORS)


def test_a_single_file_is_fetched_whole(model):
    shutil.copy(TINY / "model.safetensors", model.folder)
    reply = model.get(wanted="nothing of it")
    assert (reply["files"], reply["names"]) == (["model.safetensors"], None)
    assert reply["tensors"] == {name: content_of(tensor) for name, tensor in TENSORS.items()}
    assert model.left() == []


def test_files_in_the_cache_are_used_and_stay(model):
    kept = "model-dense.safetensors"
    reply = model.write("safetensors").get(keep=kept, disk=(model.folder / "model-expert-0.safetensors").stat().st_size)
    assert [file for file, _ in model.server.asked].count(kept) == 1
    assert reply["during"][0] == []  # it is not copied
    assert len(reply["tensors"]) == len(TENSORS)
    assert (Path(reply["folder"]) / kept).exists()


def test_the_hub_is_not_asked_for_what_the_cache_has(model):
    reply = model.write("safetensors").get(wanted="expert_3.", keep="model-expert-3.safetensors")
    assert reply["files"] == ["model-expert-3.safetensors"]
    assert reply["sizes"] == [(model.folder / "model-expert-3.safetensors").stat().st_size]
    assert model.server.listings == 0
    model.get(wanted="expert_4.", first=0)
    assert model.server.listings == 1


def test_a_broken_fetch_is_one_line_and_the_next_run_goes_on(model):
    model.write("bin")
    broken = "pytorch_model-expert-3.bin"
    model.server.cut[broken] = 5000
    reply = model.get()
    assert f"`{broken}` of `{model.id}` must come whole from the Hub, but could not be fetched" in reply["error"]
    assert "\n" not in reply["error"]
    assert len(reply["during"]) == 4
    model.server.lost.clear()
    model.server.asked.clear()
    reply = model.get(wanted="expert_3.")
    assert model.server.asked in ([(broken, 5000)], [(broken, 0)])  # newer lines of the library begin anew
    assert all(reply["tensors"][name] == content_of(TENSORS[name]) for name in TENSORS if "expert_3." in name)
    assert model.left() == []


def test_a_file_that_is_listed_and_not_given_out(model):
    model.write("safetensors").server.lost.add("model-expert-0.safetensors")
    reply = model.get()
    assert "`model-expert-0.safetensors` of" in reply["error"]
    assert "could not be fetched" in reply["error"]
    assert "\n" not in reply["error"]
    assert reply["during"] == [["model-dense.safetensors"]]


def test_a_damaged_file_is_one_line_and_not_kept(model):
    file = model.write("safetensors").folder / "model-dense.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    reply = model.get()
    assert "must be a whole weight file, but is truncated or damaged" in reply["error"]
    assert model.left() == []


def test_a_shard_without_what_the_index_says(model):
    file = model.write("safetensors").folder / "model-dense.safetensors"
    shutil.copy(model.folder / "model-routers.safetensors", file)
    assert "as the index says, but does not" in model.get()["error"]


def test_what_a_killed_run_left_goes(model):
    folder = model.scratch / ".fetching" / "model-dense.safetensors"
    stale = folder / ".cache" / "huggingface" / "download" / "hash.etag.0a1b2c3d.incomplete"
    for path in (folder.parent / "model-expert-7.safetensors" / "model-expert-7.safetensors", stale):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half a file")
    reply = model.write("safetensors").get(first=1)
    assert model.server.present == [[]]
    assert reply["during"] == [["model-dense.safetensors"]]
    assert model.left() == []


def test_too_little_disk_is_refused_before_any_byte(model):
    sizes = {path.name: path.stat().st_size for path in model.write("safetensors").folder.glob("*.safetensors")}
    largest = max(sizes, key=sizes.get)
    needed = f"{sizes[largest] + 50:,} bytes: {sizes[largest]:,} of `{largest}` and 50 to write"
    refused(model, f"`disk` must be at least {needed}, but is 1,000 bytes instead", disk=1000, written=50)
    refused(model, "must have 1,000,000,", "bytes free", written=10**18)
    assert "error" not in model.get(disk=sizes[largest] + 50, written=50)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ('{"model_type": "bert"}', "must be one of nllb-moe"),
        ('{"model_type": "no-such"}', "transformers configuration"),
    ],
)
def test_an_unknown_family_is_refused_before_any_byte(model, config, part):
    model.write("safetensors")
    (model.folder / "config.json").write_text(config)
    refused(model, part)


def test_a_model_without_weights(model):
    refused(model, f"`{model.id}` must hold the weights of a model", "holds none")


def test_what_the_hub_does_not_have(model):
    (model.write("safetensors").folder / "model-dense.safetensors").unlink()
    refused(model, "must hold `model-dense.safetensors`, as its index says")
    refused(model, "could not be fetched", revision="no-such-branch")
    model.id = "somebody/else"
    refused(model, "could not be fetched")


def test_a_revision(model):
    assert model.write("safetensors").get(first=1, revision=COMMIT)["revision"] == COMMIT
