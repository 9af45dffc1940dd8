"""A real local cluster of two workers: the same files as one process, and what happens when a worker dies."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.on_ray import ray_mapper
from nllb_prune.languages import split_direction
from nllb_prune.model.source import embedded_text
from nllb_prune.worklist import WorkItem, compute_items, one_by_one, run_items

ITEMS = [WorkItem(name) for name in ("eng_Latn-deu_Latn", "deu_Latn-eng_Latn", "eng_Latn-zho_Hans")]


@dataclass(frozen=True)
class Translations:
    """Makes what translates the first lines of a direction with the model inside the package."""

    sentences: int

    def __call__(self):
        from nllb_prune.generation.translate import translate
        from nllb_prune.model.loading import load_model
        from nllb_prune.model.source import load_tokenizer

        model, tokenizer = load_model("mini"), load_tokenizer("mini")
        text = ParallelText.open(embedded_text(), split="test").head(self.sentences)

        def compute(item):
            source, target = split_direction(item.id)
            return {"outputs": translate(model, tokenizer, text.lines(source), source=source, target=target)}

        return compute


@dataclass(frozen=True)
class Scripted:
    """Makes what notes each item in a folder, and does what the item's name says."""

    folder: Path

    def __call__(self):
        import torch

        (self.folder / f"made-{os.getpid()}-{time.time_ns()}").touch()

        def compute(item):
            tries = self.folder / f"{item.id}-{time.time_ns()}-{os.getpid()}"
            tries.touch()
            times = len(list(self.folder.glob(f"{item.id}-*")))
            if item.id == "always-dies" or (item.id == "dies-once" and times == 1):
                os._exit(1)
            while item.id.startswith("together") and len(list(self.folder.glob("made-*"))) < 2:
                time.sleep(0.05)
            if item.id == "wrong":
                raise UsageError("`wrong` must be right,\nbut is not.")
            return {"item": item.id, "process": os.getpid(), "threads": torch.get_num_threads()}

        return compute


def fails_to_start():
    raise UsageError("`model` must be there, but is missing.")


class LostOnTheWay:
    """Cannot be unpickled by a worker."""

    def __reduce__(self):
        return int, ("no number",)


@pytest.fixture(scope="module", autouse=True)
def by_value():
    """Workers cannot import this module: what they need of it travels with them."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def cluster():
    """One cluster for the tests that need no own one."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    yield ray
    ray.shutdown()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def run(names, notes, *, workers=2, factory=None):
    mapper = ray_mapper("local", workers, factory or Scripted(notes))
    return run_items([WorkItem(name) for name in names], notes.parent / "out", settings={}, mapper=mapper)


def test_two_workers_give_the_same_files_as_one_process(tmp_path, capfd):
    import ray

    factory = Translations(sentences=2)
    compute_items(ITEMS, tmp_path / "one", settings={"sentences": 2}, mapper=one_by_one(factory()))
    capfd.readouterr()
    compute_items(ITEMS, tmp_path / "ray", settings={"sentences": 2}, mapper=ray_mapper("local", 2, factory))
    assert capfd.readouterr() == ("", "")
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "ray")) == len(ITEMS)
    assert not ray.is_initialized()


def test_each_worker_builds_its_computation_once(cluster, notes):
    results = run([f"together{n}" for n in range(8)], notes)
    assert {result["threads"] for result in results} == {1}
    made = [int(path.name.split("-")[1]) for path in notes.glob("made-*")]
    assert len(made) == len(set(made)) == 2
    assert {result["process"] for result in results} <= set(made)
    assert len(list(notes.glob("together*"))) == 8
    assert cluster.is_initialized()


def test_the_item_of_a_worker_that_died_is_tried_once_more(cluster, notes):
    results = run(["first", "dies-once", "last"], notes)
    assert [result["item"] for result in results] == ["first", "dies-once", "last"]
    assert len(list(notes.glob("dies-once-*"))) == 2


def test_an_item_of_which_two_workers_died_is_named(cluster, notes):
    with pytest.raises(UsageError, match=r"^`always-dies` must be computed by a worker, but 2 workers died of it") as e:
        run(["first", "second", "always-dies"], notes, workers=1)
    assert "\n" not in str(e.value)
    assert len(list(notes.glob("always-dies-*"))) == 2
    assert set(contents(notes.parent / "out")) == {"first.json", "second.json"}


def test_what_a_computation_raises_ends_the_run(cluster, notes):
    with pytest.raises(UsageError, match=r"^`wrong` must be right,\nbut is not\.$"):
        run(["first", "wrong"], notes, workers=1)
    assert set(contents(notes.parent / "out")) == {"first.json"}


def test_what_a_factory_raises_ends_the_run(cluster, notes):
    with pytest.raises(UsageError, match=r"^`model` must be there, but is missing\.$"):
        run(["first"], notes, factory=fails_to_start)


def test_workers_that_never_start_are_named(cluster, notes):
    with pytest.raises(UsageError, match=r"`workers` must start .*ValueError: .*'no number'"):
        run(["first", "second"], notes, factory=LostOnTheWay())


def test_workers_are_ended_with_the_run(cluster, notes):
    """Also while the error that ended it is held, and with it all that the run held."""
    with pytest.raises(UsageError) as held:
        run(["together", "wrong"], notes)
    processes = {int(path.name.split("-")[1]) for path in notes.glob("made-*")}
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    assert held.value.__cause__ is not None


def test_a_cluster_without_room_is_refused(cluster, notes):
    mapper = ray_mapper("local", 1, Scripted(notes), threads=64)
    with pytest.raises(UsageError, match="must have a machine with 64 CPUs and 0 GPUs for a worker, but has none"):
        list(mapper([WorkItem("a")]))


@pytest.mark.parametrize(("option", "value"), [("workers", 0), ("threads", 0)])
def test_numbers_below_one(option, value, notes):
    options = {"workers": 1, "threads": 1} | {option: value}
    with pytest.raises(UsageError, match=f"`{option}` must be 1 or more, but is 0"):
        ray_mapper("local", options["workers"], Scripted(notes), threads=options["threads"])


def test_missing_library(monkeypatch, notes):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"not installed\. Run `pip install 'nllb-prune\[ray\]'`"):
        ray_mapper("local", 2, Scripted(notes))


UNREACHABLE = """
import sys
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.on_ray import ray_mapper
from nllb_prune.worklist import WorkItem
try:
    list(ray_mapper(sys.argv[1], 1, dict)([WorkItem("a")]))
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:port"])
def test_cluster_that_cannot_be_reached(address):
    command = [sys.executable, "-c", UNREACHABLE, address]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("`address` must be local, auto, HOST:PORT or ray://HOST:PORT of a Ray cluster, but")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_import_needs_no_ray():
    code = "import sys, nllb_prune.evaluation.on_ray; print('ray' in sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "False\n"
