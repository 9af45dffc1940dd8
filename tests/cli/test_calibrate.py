"""`calibrate` as a program: killed, in parts, under torchrun, on a full disk; and a clear line for what is wrong."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from nllb_prune.calibration.fields import GROUPS
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.cli import main
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_spec
from nllb_prune.model.source import embedded_text
from tests.killed import run_killed

ROOT = Path(__file__).parent.parent.parent
DIRECTIONS = [f"{a}-{b}" for a in ("deu", "eng", "tur") for b in ("deu", "eng", "tur") if a != b]
ARGUMENTS = (
    "calibrate", "mini", "--directions", ",".join(DIRECTIONS), "--sentences", "6", "--threads", "1",
    "--collect", ",".join(GROUPS),
)  # fmt: skip
FEW = ("calibrate", "mini", "--directions", "en-de,de-en", "--sentences", "2", "--threads", "1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What one run makes that nothing happens to."""
    output = tmp_path_factory.mktemp("undisturbed") / "statistics.safetensors"
    assert main([*ARGUMENTS, "--output", str(output)]) == 0
    return output.read_bytes()


@pytest.fixture
def fails(capfd):
    """Ends with status 1 and one line that begins with the verb; returns the line."""

    def call(*arguments, verb="calibrate"):
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert (status, out) == (1, ""), (out, err)
        assert err.startswith(f"nllb-prune {verb}: ")
        assert err.count("\n") == 1, err
        return err

    return call


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def program(*arguments, module="nllb_prune", **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


# killed


def test_killed_again_and_again(undisturbed, tmp_path):
    """Killed while it loads, after one direction and after some; the same command ends with the bytes of one run."""
    output, work = tmp_path / "s.safetensors", tmp_path / "s.work"
    command = (*ARGUMENTS, "--output", output)
    run_killed("open", "generation_config.json", 0, *command)
    assert files(tmp_path) == []
    for more, finished in ((1, 1), (3, 4)):
        run_killed("os.rename", ".bin", more, *command)
        assert len(list(work.glob("*.bin"))) == finished
        assert not output.exists()
    (work / ".tur_Latn-deu_Latn.bin.99.tmp").write_bytes(b"half of a")
    made = {path.name: path.stat().st_mtime_ns for path in work.glob("*.bin")}
    assert main(list(map(str, command))) == 0
    assert output.read_bytes() == undisturbed
    assert all((work / name).stat().st_mtime_ns == at for name, at in made.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_killed_at_any_moment(undisturbed, tmp_path):
    """A fork needs no imports, so that it can be killed often, also while it writes."""
    command = [*ARGUMENTS, "--output", str(tmp_path / "s.safetensors")]
    for delay in (0.05, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4):
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(main(command))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    for name in files(tmp_path):
        assert name.endswith((".bin", ".tmp", "s.safetensors")), name
    assert main(command) == 0
    assert (tmp_path / "s.safetensors").read_bytes() == undisturbed


# in parts


def test_shards_of_two_machines_make_one_run(undisturbed, tmp_path, capfd):
    paths = [tmp_path / f"part-{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        assert main([*ARGUMENTS, "--shard", f"{number}/2", "--output", str(path)]) == 0
    assert [ExpertStatistics.load(path).items for path in paths] == [
        ("deu_Latn-eng_Latn", "eng_Latn-deu_Latn", "tur_Latn-deu_Latn"),
        ("deu_Latn-tur_Latn", "eng_Latn-tur_Latn", "tur_Latn-eng_Latn"),
    ]
    merge = ["stats", "merge", *map(str, reversed(paths)), "--output", str(tmp_path / "merged.safetensors")]
    assert main(merge) == 0
    assert (tmp_path / "merged.safetensors").read_bytes() == undisturbed


def test_torchrun_makes_the_same_file(undisturbed, tmp_path):
    output = tmp_path / "s.safetensors"
    (tmp_path / "s.work").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path / "s.work" / "deu_Latn-eng_Latn.bin")  # made again, as is asked for
    command = ("--standalone", "--nproc-per-node", 2, "-m", "nllb_prune", *ARGUMENTS, "--output", output, "--restart")
    process = program(*command, module="torch.distributed.run")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("\n") == 1  # one of them says what was made
    assert output.read_bytes() == undisturbed
    assert len(list((tmp_path / "s.work").glob("*.bin"))) == len(DIRECTIONS)


@contextmanager
def one_of_two(monkeypatch, rank):
    """Pretend to be a process of torchrun; the other one waits for nobody."""
    from nllb_prune.calibration import processes

    waited = []
    monkeypatch.setattr(processes.Processes, "wait", lambda self: waited.append(self.rank))

    @contextmanager
    def group():
        yield processes.Processes(rank, 2, rank)

    monkeypatch.setattr(processes, "process_group", group)
    yield waited
    monkeypatch.undo()


def test_only_the_first_process_writes(tmp_path, monkeypatch, capfd):
    command = [*FEW, "--output", str(tmp_path / "s.safetensors"), "--restart"]
    with one_of_two(monkeypatch, 1) as waited:
        assert main(command) == 0
        assert waited == [1]
    assert files(tmp_path) == ["s.work/deu_Latn-eng_Latn.bin"]
    assert capfd.readouterr().out == ""
    made = (tmp_path / files(tmp_path)[0]).stat().st_mtime_ns
    with one_of_two(monkeypatch, 0):
        assert main(command) == 0
    assert (tmp_path / "s.work" / "deu_Latn-eng_Latn.bin").stat().st_mtime_ns == made  # the other's work is not redone
    assert "s.safetensors" in files(tmp_path)
    assert ExpertStatistics.load(tmp_path / "s.safetensors").items == ("deu_Latn-eng_Latn", "eng_Latn-deu_Latn")


def test_processes_without_a_common_folder_end_in_one_line(fails, tmp_path, monkeypatch):
    """What the others made elsewhere is not made again by the first."""
    command = [*FEW, "--output", str(tmp_path / "s.safetensors")]
    with one_of_two(monkeypatch, 0):
        line = fails(*command)
    assert f"`--work` must be a folder that all processes see, but `{tmp_path / 's.work'}` lacks 1 of 2" in line
    assert "(deu_Latn-eng_Latn). Copy the folders of the other machines into it, or name one that they share" in line
    assert files(tmp_path) == ["s.work/eng_Latn-deu_Latn.bin"]
    with one_of_two(monkeypatch, 1):
        assert main([*command, "--work", str(tmp_path / "there")]) == 0
    (tmp_path / "there" / "deu_Latn-eng_Latn.bin").rename(tmp_path / "s.work" / "deu_Latn-eng_Latn.bin")
    with one_of_two(monkeypatch, 0):
        assert main(command) == 0
    assert len(ExpertStatistics.load(tmp_path / "s.safetensors").items) == 2


def test_a_process_that_does_not_write_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ExpertStatistics, "from_bytes", None)
    with one_of_two(monkeypatch, 1):
        assert main([*FEW, "--output", str(tmp_path / "s.safetensors")]) == 0


def test_a_shard_under_torchrun_is_refused(fails, tmp_path, monkeypatch):
    with one_of_two(monkeypatch, 0):
        line = fails(*FEW, "--shard", "1/2", "--output", tmp_path / "s.safetensors")
    assert "`--shard` must be left out under torchrun" in line


# no room


@contextmanager
def largest_file(size):
    """Let no file grow beyond a size, as `ulimit -f` does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_a_direction(fails, tmp_path):
    command = (*FEW, "--output", tmp_path / "s.safetensors")
    with largest_file(50_000):
        line = fails(*command)
    assert f"`{tmp_path / 's.work' / 'eng_Latn-deu_Latn.bin'}` must be a place to write" in line
    assert "(File too large)" in line
    assert files(tmp_path) == []
    assert main(list(map(str, command))) == 0


def test_no_room_for_the_whole(fails, tmp_path):
    command = (*FEW, "--output", tmp_path / "s.safetensors")
    assert main(list(map(str, command))) == 0
    made = (tmp_path / "s.safetensors").read_bytes()
    largest = max(path.stat().st_size for path in (tmp_path / "s.work").iterdir())
    assert len(made) > largest + 1000
    work = ["s.work/deu_Latn-eng_Latn.bin", "s.work/eng_Latn-deu_Latn.bin"]
    with largest_file(largest + 1000):
        line = fails(*command)
        merge = fails("stats", "merge", tmp_path / "s.safetensors", "--output", tmp_path / "m", verb="stats")
    assert f"`{tmp_path / 's.safetensors'}` must be a place to write {len(made):,} bytes to, but is not" in line
    assert "File too large" in merge
    assert files(tmp_path) == ["s.safetensors", *work]
    assert (tmp_path / "s.safetensors").read_bytes() == made  # the old file, whole
    (tmp_path / "s.safetensors").unlink()
    with largest_file(largest + 1000):
        fails(*command)
    assert files(tmp_path) == work
    assert main(list(map(str, command))) == 0
    assert (tmp_path / "s.safetensors").read_bytes() == made


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk(fails, small_disk, tmp_path):
    command = (*FEW, "--output", small_disk / "s.safetensors", "--collect", "norms")
    rest = small_disk / "rest"
    rest.write_bytes(b"x" * 300_000)
    line = fails(*command)
    assert "No space left on device" in line
    assert "must be a place to write" in line
    assert files(small_disk) == ["rest"]
    rest.write_bytes(b"x" * 100_000)
    assert "No space left on device" in fails(*command)
    assert files(small_disk) == ["rest", "s.work/eng_Latn-deu_Latn.bin"]
    rest.unlink()
    elsewhere = tmp_path / "elsewhere.safetensors"
    there = ("--output", elsewhere, "--work", small_disk / "s.work")
    assert main([str(each) for each in (*FEW, "--collect", "norms", *there)]) == 0
    assert main([str(each) for each in (*FEW, "--collect", "norms", "--output", tmp_path / "other.safetensors")]) == 0
    assert elsewhere.read_bytes() == (tmp_path / "other.safetensors").read_bytes()


@pytest.mark.parametrize("blocked", ["s.work", "s.work/eng_Latn-deu_Latn.bin", "folder"])
def test_places_that_are_something_else(fails, tmp_path, blocked):
    if blocked.endswith(".bin"):
        (tmp_path / blocked).mkdir(parents=True)
    else:
        (tmp_path / blocked).write_text("a file")
    output = tmp_path / ("folder/s.safetensors" if blocked == "folder" else "s.safetensors")
    line = fails(*FEW, "--output", output)
    assert str(tmp_path) in line
    assert not output.exists()


# what is wrong


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--collect", "norm"], "`collect` must be of core, norms, vocabulary"),
        (["--collect", "norms,everything"], "but names everything instead"),
        (["--shard", "0/2"], "`--shard` must be K/N with K from 1 to N, as in 1/4, but is 0/2"),
        (["--shard", "3/2"], "but is 3/2"),
        (["--shard", "1"], "but is 1 instead"),
        (["--shard", "1/2/3"], "but is 1/2/3"),
        (["--shard", "-1/2"], "but is -1/2"),
        (["--shard", "a/b"], "but is a/b"),
        (["--shard", "1/3"], "`shard` must be of 2 at most, one direction each, but is of 3"),
        (["--beams", "4"], "`beams` must be left out with the mode references"),
        (["--pairs-per-target", "3"], "`pairs_per_target` must be 1 to 2, the lines of the text, but is 3"),
        (["--masks", "none.json"], "no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(fails, tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in fails(*FEW, f"{options[0]}={options[1]}", "--output", "s.safetensors")
    assert files(tmp_path) == []


@pytest.mark.parametrize("options", [["--mode", "both"], ["--beams", "0"], ["--pairs-per-target", "0"]], ids=" ".join)
def test_wrong_usage(tmp_path, options, capfd):
    with pytest.raises(SystemExit) as ended:
        main([*FEW, *options, "--output", str(tmp_path / "s")])
    assert ended.value.code == 2
    assert "error: " in capfd.readouterr().err.splitlines()[-1]


def test_options_are_refused_before_the_model_is_loaded(fails, tmp_path, monkeypatch):
    monkeypatch.setattr("nllb_prune.model.loading.load_model", None)
    for wrong in (
        ["--beams", "2"],
        ["--collect", "norm"],
        ["--masks", tmp_path / "none"],
        ["--text", tmp_path / "none"],
    ):
        fails(*FEW, *wrong, "--output", tmp_path / "s.safetensors")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for code in ("eng_Latn", "deu_Latn"):
        lines = (embedded_text() / "dev" / f"{code}.dev").read_text().splitlines()[:4]
        (folder / f"{code}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.write_bytes(b"\xff\xfe\n" * 4), "must be UTF-8 text"),
        (lambda path: (path.unlink(), path.mkdir()), "deu_Latn.txt"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "deu_Latn.txt"),
        (lambda path: path.write_text("ein Satz\n"), "same number of lines"),
        (lambda path: path.unlink(), "must use the languages eng_Latn"),
        (lambda path: shutil.rmtree(path.parent), "no such file or folder"),
    ],
    ids=["bad UTF-8", "folder", "broken link", "fewer lines", "missing language", "missing folder"],
)
def test_unreadable_corpus(fails, corpus, tmp_path, spoil, expected):
    spoil(corpus / "deu_Latn.txt")
    line = fails("calibrate", "mini", "--directions", "en-de", "--text", corpus, "--output", tmp_path / "s.safetensors")
    assert expected in line
    assert not list(tmp_path.glob("s.*"))


@pytest.mark.parametrize("options", [[], ["--directions", "en-de"]], ids=" ".join)
def test_an_empty_corpus(fails, corpus, tmp_path, options):
    for path in corpus.iterdir():
        path.write_text("")
    line = fails("calibrate", "mini", "--text", corpus, *options, "--output", tmp_path / "s.safetensors")
    assert "`text` must have a line or more, but has none" in line


# what it says


def test_groups_may_be_named_with_spaces(tmp_path):
    output = tmp_path / "s.safetensors"
    assert main([*FEW, "--collect", " norms , coselection ,", "--output", str(output)]) == 0
    assert ExpertStatistics.load(output).collect == ("core", "norms", "coselection")


def test_stats_show_tells_the_groups(tmp_path, capfd):
    output = str(tmp_path / "s.safetensors")
    assert main([*FEW, "--collect", "norms,vocabulary", "--output", output]) == 0
    capfd.readouterr()
    assert main(["stats", "show", output]) == 0
    assert "2 directions, by language; groups core, norms, vocabulary\n" in capfd.readouterr().out
    assert main(["stats", "show", output, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["collect"] == ["core", "norms", "vocabulary"]


def test_merging_reads_one_file_at_a_time(fails, tmp_path):
    """What does not fit is refused before what comes after it is read."""
    ways = {"a": ["--granularity", "language"], "b": ["--granularity", "pair"]}
    for name, options in ways.items():
        shard = ["--shard", f"{'ab'.index(name) + 1}/2"]
        assert main([*FEW, *options, *shard, "--output", str(tmp_path / name)]) == 0
    line = fails("stats", "merge", *(tmp_path / name for name in "abc"), "--output", tmp_path / "m", verb="stats")
    assert "`granularity` of the parts must be equal" in line
    line = fails("stats", "merge", *(tmp_path / name for name in "ac"), "--output", tmp_path / "m", verb="stats")
    assert "no such file" in line


def test_modes_masks_and_spreads_are_in_the_signature(tmp_path):
    spec = load_spec("mini")
    few = tuple(tuple(range(20)) for _ in range(3))
    masks = MaskSet(
        model_name="mini",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": few} for stack in spec.stacks},
    )
    masks.save(tmp_path / "masks.json")
    output = tmp_path / "s.safetensors"
    within = ["--masks", str(tmp_path / "masks.json"), "--pairs-per-target", "1", "--granularity", "pair"]
    assert main([*FEW, "--mode", "outputs", "--beams", "2", *within, "--output", str(output)]) == 0
    statistics = ExpertStatistics.load(output)
    made = {name: statistics.signature[name] for name in ("mode", "masks", "pairs_per_target", "sentences")}
    assert made == {"mode": "outputs, beam 2", "masks": masks.signature, "pairs_per_target": 1, "sentences": 2}
    for table in statistics.tables.values():
        assert not table["first"][:, :, 20:].any()
        assert not table["second"][:, :, 20:].any()
        assert table["first"].any()


# streamed

STREAMED = (*ARGUMENTS[:-1], "norms,reservoir", "--stream", "--stream-memory", "6MB")


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """What one streamed run makes that nothing happens to."""
    output = tmp_path_factory.mktemp("streamed") / "statistics.safetensors"
    assert main([*STREAMED, "--output", str(output)]) == 0
    return output.read_bytes()


def test_a_streamed_run_is_near_one_in_memory(streamed, tmp_path):
    output = tmp_path / "s.safetensors"
    assert main([*ARGUMENTS[:-1], "norms,reservoir", "--output", str(output)]) == 0
    ours, theirs = ExpertStatistics.from_bytes(streamed), ExpertStatistics.load(output)
    assert (ours.items, ours.signature) == (theirs.items, theirs.signature)
    for place, table in theirs.tables.items():
        assert abs(ours.tables[place]["first"] - table["first"]).sum() <= 1e-5 * table["first"].sum()
        assert ours.tables[place]["norm"] == pytest.approx(table["norm"], rel=1e-4, abs=1e-3)


def test_a_streamed_run_that_is_killed_at_several_layers(streamed, tmp_path):
    output, work = tmp_path / "s.safetensors", tmp_path / "s.work"
    state, seen = work / "streamed-1-of-1.state", []
    for more in (2, 3, 4):
        run_killed("os.rename", ".state", more, *STREAMED, "--output", output)
        header = json.loads(state.open("rb").readline())
        seen.append((header["chunk"], header["steps"]))
        assert not output.exists()
    assert seen == [(0, 2), (0, 5), (1, 3)]  # of 6 steps
    assert main([*STREAMED, "--output", str(output)]) == 0
    assert output.read_bytes() == streamed
    assert files(work) == sorted(f"{a}_Latn-{b}_Latn.bin" for a, b in (each.split("-") for each in DIRECTIONS))


def test_a_streamed_run_says_what_it_takes(capfd, tmp_path):
    command = [*FEW, "--stream", "--output", str(tmp_path / "s.safetensors")]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert err.startswith("4 sentence pairs in 1 chunk of about 4; at most ")
    assert err.endswith(" to be read\n")
    assert out.startswith(f"{tmp_path / 's.safetensors'}: 2 directions, ")
    assert main(command) == 0  # all is there
    assert capfd.readouterr().err == ""


def test_no_room_for_what_a_streamed_run_goes_on_from(capfd, tmp_path):
    command = (*FEW, "--stream", "--output", tmp_path / "s.safetensors")
    capfd.readouterr()
    with largest_file(50_000):
        assert main([str(each) for each in command]) == 1
    line = capfd.readouterr().err.splitlines()[-1]  # behind what it would take
    assert f"`{tmp_path / 's.work' / 'streamed-1-of-1.state'}` must be a place to write" in line
    assert "(File too large)" in line
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--stream-memory=4GB"], "`--stream-memory` must come with `--stream`, but comes alone"),
        (
            ["--stream", "--stream-memory=4 cows"],
            "`memory` must be a size such as 24GiB, 16GB or 800MiB, but is 4 cows",
        ),
        (["--stream", "--stream-memory=4kB"], "`stream_memory` must be "),
        (["--stream", "--collect=gradients"], "with a streamed model, but names gradients instead"),
        (["--stream", "--mode=outputs"], "`mode` must be references with a streamed model, but is outputs instead"),
    ],
    ids=str,
)
def test_what_cannot_be_streamed(fails, tmp_path, options, expected):
    assert expected in fails(*FEW, *options, "--output", tmp_path / "s.safetensors")
    assert files(tmp_path) == []
