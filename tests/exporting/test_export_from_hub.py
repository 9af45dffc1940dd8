"""An export of a Hub id: shard after shard, only those with something kept, none left, the bytes of a local export."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from nllb_prune import load_spec
from nllb_prune.cli import main
from nllb_prune.masks import MaskSet
from nllb_prune.model.source import model_folder
from tests.hub import COMMIT, Hub, Runner, client_environment

KEPT = (0, 5, 9)
KINDS = {"safetensors": ("model", save_file), "bin": ("pytorch_model", torch.save)}


def shard_of(name):
    """Eight experts of every layer in a shard, all else in another."""
    return f"experts-{int(name.split('expert_')[1].split('.')[0]) // 8}" if "expert_" in name else "dense"


@pytest.fixture(scope="module", params=KINDS)
def hub(request, tmp_path_factory):
    """A Hub with `mini` in nine shards."""
    hub = Hub(tmp_path_factory.mktemp("hub"))
    folder = hub.root / "somebody" / "mini"
    shutil.copytree(model_folder("mini"), folder, ignore=shutil.ignore_patterns("*.safetensors", "text"))
    tensors = load_file(model_folder("mini") / "model.safetensors")
    stem, save = KINDS[request.param]
    weight_map = {name: f"{stem}-{shard_of(name)}.{request.param}" for name in tensors}
    for file in set(weight_map.values()):
        save({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / f"{stem}.{request.param}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    yield hub
    hub.shutdown()
    hub.server_close()


@pytest.fixture(scope="module")
def runner(hub, tmp_path_factory):
    runner = Runner(hub, tmp_path_factory.mktemp("runner"))
    yield runner
    runner.close()


@pytest.fixture
def masks(tmp_path):
    spec = load_spec("mini")
    kept = {stack.name: {"*": [KEPT] * len(stack.layers)} for stack in spec.stacks}
    path = tmp_path / "masks.json"
    found = MaskSet(
        model_name="mini", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="global", masks=kept
    )
    found.save(path)
    return path


def export_command(tmp_path, masks, *more):
    return ["export", "somebody/mini", "--masks", str(masks), "--output", str(tmp_path / "here" / "out"), *more]


@pytest.fixture
def export(hub, runner, masks, tmp_path):
    def call(*more, cut=None):
        hub.forget()
        hub.cut, hub.scratch = cut or {}, tmp_path / "here"
        return runner.run(export_command(tmp_path, masks, "--json", *more))

    return call


def test_shards_come_one_by_one_and_go(hub, masks, tmp_path):
    hub.forget()
    hub.scratch = tmp_path / "here"
    command = [sys.executable, "-m", "nllb_prune", *export_command(tmp_path, masks, "--json")]
    environment = client_environment(hub, tmp_path / "home")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = [file.partition("-")[2].rpartition(".")[0] for file, _ in hub.asked]
    assert asked == ["dense", "experts-0", "experts-1"]  # of 0, 5 and 9
    assert all(len([name for name in present if "partial" not in name]) <= 2 for present in hub.present)
    left = [path for path in (tmp_path / "here").rglob("*") if path.suffix in (".bin", ".safetensors")]
    assert {path.parent.name for path in left} == {"out"}
    assert main(["export", "mini", "--masks", str(masks), "--output", str(tmp_path / "local")]) == 0
    fetched = {}
    for path in left:
        fetched |= load_file(path)
    local = load_file(tmp_path / "local" / "model.safetensors")
    assert fetched.keys() == local.keys()
    assert all(torch.equal(tensor, local[name]) for name, tensor in fetched.items())
    said = json.loads((tmp_path / "here" / "out" / "config.json").read_text())["expert_pruning"]
    assert (said["base_model"], said["base_revision"]) == ("somebody/mini", COMMIT)


def test_too_little_disk_is_told_before_the_first_weight(hub, export):
    status, _, told = export("--disk", "1MB")
    assert status == 1
    assert "1,000,000" in told
    assert len(told.strip().splitlines()) == 1
    assert hub.asked == []


def test_a_cut_connection_is_one_line_and_the_next_run_goes_on(hub, export, tmp_path):
    suffix = next(path.suffix for path in (hub.root / "somebody" / "mini").glob("*experts-0.*"))
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    status, _, told = export(cut={f"{stem}-experts-1{suffix}": 1000})
    assert status == 1
    last = told.strip().splitlines()[-1]  # after what the Hub's library says of its own attempts
    assert last.startswith(f"nllb-prune export: `{stem}-experts-1{suffix}` of `somebody/mini` must come whole")
    assert not (tmp_path / "here" / "out").exists()
    status, _, told = export()
    assert status == 0, told
    assert {file for file, _ in hub.asked} == {f"{stem}-experts-1{suffix}"}  # what was whole is not fetched again
    assert (tmp_path / "here" / "out" / "manifest.json").exists()


def test_two_exports_beside_each_other(hub, masks, tmp_path):
    hub.forget()
    hub.scratch = tmp_path / "here"
    command = [sys.executable, "-m", "nllb_prune", "export", "somebody/mini", "--masks", str(masks), "--output"]
    environment = client_environment(hub, tmp_path / "home")
    running = [subprocess.Popen([*command, str(tmp_path / "here" / name)], env=environment) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"a", "b"}


def test_an_index_is_imported_in_little_disk(hub, runner, tmp_path):
    index = tmp_path / "index.json"
    index.write_text(json.dumps({code: [64 * layer + n for layer in range(6) for n in KEPT] for code in ("eng_Latn",)}))
    hub.forget()
    hub.scratch = tmp_path
    command = ["masks", "import", index, "--model", "somebody/mini", "--disk", "100MB"]
    status, _, told = runner.run([*command, "--output", tmp_path / "masks.json"])
    assert status == 0, told
    assert len(hub.asked) == 1  # all routers are in one file
    left = [path for folder in (tmp_path, runner.home) for path in folder.rglob("*")]
    assert not [path for path in left if path.suffix in (".bin", ".safetensors")]
    assert MaskSet.load(tmp_path / "masks.json").fingerprint.matches(load_spec("mini").fingerprint)
