"""The whole flow through the command line on the embedded model, and one clear line for whatever is wrong."""

import argparse
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import M2M100Config, M2M100ForConditionalGeneration

from nllb_prune import __version__
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.cli import VERBS, main, parser
from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_spec
from nllb_prune.model.source import embedded_text

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests" / "reference" / "tiny"
PAIR = "eng_Latn-deu_Latn"
BOTH = f"{PAIR},deu_Latn-eng_Latn"
OWN_VERBS = [verb for verb in VERBS if verb not in ("demo", "report")]


def statistics_of(folder, *directions):
    path = folder / f"{'+'.join(directions)}.safetensors"
    main(["calibrate", "mini", "--directions", ",".join(directions), "--sentences", "4", "--output", str(path)])
    return path


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A folder with what calibrate and plan make of four sentences."""
    folder = tmp_path_factory.mktemp("flow")
    statistics_of(folder, *BOTH.split(",")).rename(folder / "statistics.safetensors")
    plan = ["plan", str(folder / "statistics.safetensors"), "--keep", "0.25", "--output", str(folder / "masks.json")]
    assert main(plan) == 0
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    sizes = {f"{stack}_{what}": 2 for stack in ("encoder", "decoder") for what in ("layers", "ffn_dim")}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    M2M100ForConditionalGeneration(M2M100Config(vocab_size=9, d_model=4, **sizes, **heads)).save_pretrained(folder)
    return folder


# the flow


def test_calibrate(works, tmp_path):
    output = tmp_path / "statistics.safetensors"
    arguments = ("calibrate", "mini", "--directions", "en-de", "--sentences", 3, "--output", output)
    assert works(*arguments).startswith(f"{output}: 1 directions, ")
    statistics = ExpertStatistics.load(output)
    assert statistics.items == (PAIR,)
    assert statistics.signature["sentences"] == 3
    made = output.read_bytes()
    told = json.loads(works(*arguments, "--json"))
    assert (told["output"], told["directions"]) == (str(output), 1)
    assert told["tokens"]["encoder"] == statistics.table("encoder", "eng_Latn")["tokens"][0]
    assert output.read_bytes() == made
    assert (tmp_path / "statistics.work" / f"{PAIR}.bin").exists()


def test_calibrate_restart(works, fails, tmp_path):
    arguments = ("calibrate", "mini", "--directions", PAIR, "--output", tmp_path / "s.safetensors")
    works(*arguments, "--sentences", 2)
    assert "`sentences` was 2 and is 3" in fails(*arguments, "--sentences", 3)
    assert ExpertStatistics.load(tmp_path / "s.safetensors").signature["sentences"] == 2
    works(*arguments, "--sentences", 3, "--restart")
    assert ExpertStatistics.load(tmp_path / "s.safetensors").signature["sentences"] == 3


@pytest.mark.parametrize("layout", ["flores", "flat", "tsv", "jsonl"])
def test_calibrate_on_own_text(works, tmp_path, layout):
    lines = {"eng_Latn": ["play music", "stop"], "deu_Latn": ["spiel musik", "halt"], "xxx_Latn": ["a", "b"]}
    path = tmp_path / f"text.{layout}"
    if layout in ("flores", "flat"):
        folder, ending = (path / "dev", "dev") if layout == "flores" else (path, "txt")
        folder.mkdir(parents=True)
        for code, own in lines.items():
            (folder / f"{code}.{ending}").write_text("\n".join(own) + "\n")
    elif layout == "tsv":
        path.write_text("\n".join("\t".join(row) for row in (lines, *zip(*lines.values(), strict=True))) + "\n")
    else:
        rows = [dict(zip(lines, row, strict=True)) for row in zip(*lines.values(), strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    works("calibrate", "mini", "--text", path, "--output", tmp_path / "s.safetensors")
    statistics = ExpertStatistics.load(tmp_path / "s.safetensors")
    assert statistics.items == ("deu_Latn-eng_Latn", PAIR)


def test_plan(works, flow, tmp_path):
    out = works("plan", flow / "statistics.safetensors", "--keep", "25%", "--output", tmp_path / "masks.json")
    assert "75.00% of the experts pruned" in out
    masks = MaskSet.load(tmp_path / "masks.json")
    assert masks.direction("eng_Latn", "deu_Latn") == MaskSet.load(flow / "masks.json").direction(
        "eng_Latn", "deu_Latn"
    )
    assert [len(layer) for layer in masks.mask("encoder", "eng_Latn", "deu_Latn")] == [24] * 3
    assert [len(layer) for layer in masks.mask("decoder", "eng_Latn", "deu_Latn")] == [8] * 3
    told = json.loads(
        works(
            "plan", flow / "statistics.safetensors", "--keep", 96, "--json", "--output", tmp_path / "other.json",
            "--criterion", "frequency", "--ratio", "1:1", "--granularity", "global",
        )
    )  # fmt: skip
    assert told["signature"] == MaskSet.load(tmp_path / "other.json").signature
    assert told["plan"]["criterion"] == "frequency"


def test_translate(works, flow, tmp_path, monkeypatch):
    languages = ("--source", "eng_Latn", "--target", "de")
    arguments = ("translate", "mini", *languages)
    (one,) = works("translate", "mini", "play music", *languages).splitlines()
    assert one
    source = tmp_path / "in.txt"
    source.write_bytes("play music\r\n\n  \nplay\u2028music\nstop".encode())
    lines = works(*arguments, "--input", source).split("\n")
    assert lines[:3] == [one, "", "  "]
    assert len(lines) == 6
    works(*arguments, "--input", source, "--output", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text().split("\n") == lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"play music\n")))
    assert works(*arguments) == f"{one}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert works(*arguments) == ""
    within = ("--masks", flow / "masks.json", "--beams", 2)
    assert works("translate", "mini", "play music", "stop", *languages, *within).count("\n") == 2


def test_masks(works, flow, tmp_path):
    masks = flow / "masks.json"
    out = works("masks", "show", masks)
    assert "by language" in out
    assert "24, 24, 24" in out
    assert '"criterion": "importance"' in out
    rows = works("masks", "compare", masks, masks).splitlines()[2:]
    assert [row.split() for row in rows[:4]] == [
        [stack, code, "1.000", kept, "0", "0"]
        for stack, kept in (("encoder", "72"), ("decoder", "24"))
        for code in ("deu_Latn", "eng_Latn")
    ]
    works("masks", "export", masks, "--output", tmp_path / "index.json")
    index = json.loads((tmp_path / "index.json").read_text())
    assert {code: len(ids) for code, ids in index.items()} == {"eng_Latn": 96, "deu_Latn": 96}
    works("masks", "import", tmp_path / "index.json", "--model", "mini", "--output", tmp_path / "back.json")
    assert MaskSet.load(tmp_path / "back.json").masks == MaskSet.load(masks).masks


def test_stats(works, fails, flow, tmp_path):
    shards = [statistics_of(tmp_path, direction) for direction in BOTH.split(",")]
    out = works("stats", "merge", *shards, "--output", tmp_path / "merged.safetensors")
    assert "2 directions" in out
    assert (tmp_path / "merged.safetensors").read_bytes() == (flow / "statistics.safetensors").read_bytes()
    out = works("stats", "show", tmp_path / "merged.safetensors")
    assert "2 directions, by language" in out
    assert "sentences 4" in out
    content = json.loads(works("stats", "show", tmp_path / "merged.safetensors", "--json"))
    statistics = ExpertStatistics.load(tmp_path / "merged.safetensors")
    assert content["directions"] == list(statistics.items)
    assert content["digest"] == statistics.digest()
    table = statistics.table("encoder", "deu_Latn")
    assert content["tables"][0]["tokens"] == table["tokens"][0]
    assert content["tables"][0]["busiest"] == table["first"][0].argmax(axis=1).tolist()
    twice = fails("stats", "merge", shards[0], shards[0], "--output", tmp_path / "twice.safetensors")
    assert f"{PAIR} is there twice" in twice
    assert not (tmp_path / "twice.safetensors").exists()


def test_inspect(works):
    out = works("inspect", "mini")
    assert "384 experts, top-2" in out
    assert [line.split()[:2] for line in out.splitlines()[3:]] == [["encoder", "source"], ["decoder", "target"]]
    content = json.loads(works("inspect", "mini", "--json"))
    assert content["top_k"] == 2
    assert [stack["experts"] for stack in content["stacks"]] == [64, 64]


# wrong inputs


def text_folder(path, **lines):
    path.mkdir()
    for code, own in lines.items():
        (path / f"{code}.txt").write_text("".join(f"{line}\n" for line in own))
    return path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["translate", "mini", "x", "--source", "eng_Latn", "--target", "xyz"], "FLORES-200 code"),
        (["translate", "mini", "x", "--source", "eng_Latn", "--target", "fra_Latn"], "one of the model's"),
        (["translate", "mini", "--input", "none.txt", "--source", "en", "--target", "de"], "none.txt"),
        (["translate", "mini", "--input", ".", "--source", "en", "--target", "de"], "directory"),
        (["translate", "mini", "x", "--source", "en", "--target", "de", "--masks", "none"], "no such file"),
        (["translate", "mini", "x", "--source", "en", "--target", "de", "--masks", "."], "is a folder"),
        (["translate", "mini", "x", "--source", "en", "--target", "de", "--device", "abacus"], "`--device` must be"),
        (["translate", "maxi", "x", "--source", "en", "--target", "de"], "`model` must be mini"),
        (["calibrate", "mini", "--directions", "eng_Latn-fra_Latn", "--output", "s"], "must use the languages"),
        (["calibrate", "mini", "--directions", "eng_Latn", "--output", "s"], "SOURCE-TARGET"),
        (["calibrate", "mini", "--directions", ",", "--output", "s"], "at least one direction"),
        (["calibrate", "mini", "--split", "train", "--output", "s"], "must be dev, test, but is `train`"),
        (["calibrate", "mini", "--text", "none", "--output", "s"], "no such file or folder"),
        (["calibrate", "mini", "--text", "none.tsv", "--output", "s"], "no such file or folder"),
        (["calibrate", "mini", "--output", "."], "`--output` must be a file"),
        (["calibrate", "maxi", "--output", "s"], "`model` must be mini"),
        (["calibrate", ".", "--output", "s"], "folder with a `config.json`"),
        (["inspect", "none/such/model"], "`model` must be mini"),
        (["inspect", "."], "folder with a `config.json`"),
        (["plan", "none", "--keep", "0.5", "--output", "m"], "no such file"),
        (["plan", ".", "--keep", "0.5", "--output", "m"], "no such file"),
        (["masks", "show", "none.json"], "no such file"),
        (["masks", "show", "."], "is a folder"),
        (["masks", "import", "none.json", "--model", "mini", "--output", "m"], "no such file"),
        (["stats", "show", "none"], "no such file"),
        (["stats", "show", "."], "no such file"),
        (["stats", "merge", "none", "--output", "m"], "no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input(fails, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in fails(*arguments)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--keep", "0.25", "--criterion", "best"], "`criterion` must be one of"),
        (["--keep", "11"], "must be 12 to 384 experts (2 or more in each of 6 sparse layers), but is 11"),
        (["--keep", "0.001"], "must be 12 to 384 experts"),
        (["--keep", "385"], "must be 12 to 384 experts"),
        (["--keep", "1.5"], "1.5"),
        (["--keep", "many"], "many"),
        (["--keep", "nan"], "nan"),
        (["--keep", "0.25", "--ratio", "3"], "`ratio` must be encoder:decoder"),
        (["--keep", "0.25", "--ratio", "0:1"], "`ratio` must be encoder:decoder"),
        (["--keep", "0.25", "--granularity", "pair"], "pair"),
        (["--keep", "0.25", "--aggregation", "mean-of-directions"], "pair"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_plan(fails, flow, tmp_path, options, expected):
    line = fails("plan", flow / "statistics.safetensors", *options, "--output", tmp_path / "masks.json")
    assert expected in line
    assert not (tmp_path / "masks.json").exists()


def test_output_that_is_a_folder(fails, flow, tmp_path):
    fails("plan", flow / "statistics.safetensors", "--keep", "0.25", "--output", tmp_path)
    fails("masks", "export", flow / "masks.json", "--output", tmp_path)
    fails("stats", "merge", flow / "statistics.safetensors", "--output", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"eng_Latn": [1, 2]}'])
def test_files_of_something_else(fails, tmp_path, content):
    wrong = tmp_path / "wrong.json"
    wrong.write_bytes(content)
    assert "must be" in fails("masks", "show", wrong)
    assert "must be a statistics file" in fails("plan", wrong, "--keep", "0.25", "--output", tmp_path / "m")
    assert "must be a statistics file" in fails("stats", "show", wrong)


@pytest.mark.parametrize("left", [0.9, 0.5, 0.01])
def test_truncated_statistics(fails, flow, tmp_path, left):
    content = (flow / "statistics.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(len(content) * left)])
    assert str(path) in fails("stats", "show", path)


def test_wrong_corpora(fails, tmp_path):
    output = ("--output", tmp_path / "s.safetensors")
    misaligned = text_folder(tmp_path / "misaligned", eng_Latn=["play", "stop"], deu_Latn=["spiel"])
    line = fails("calibrate", "mini", "--text", misaligned, *output)
    assert "same number of lines" in line
    assert "1" in line
    assert "2" in line
    empty = text_folder(tmp_path / "empty")
    assert "names no language" in fails("calibrate", "mini", "--text", empty, *output)
    alone = text_folder(tmp_path / "alone", eng_Latn=["play"])
    assert "two different languages" in fails("calibrate", "mini", "--text", alone, *output)
    binary = text_folder(tmp_path / "binary", eng_Latn=["play"], deu_Latn=["spiel"])
    (binary / "deu_Latn.txt").write_bytes(b"\xff\n")
    assert "must be UTF-8 text" in fails("calibrate", "mini", "--text", binary, *output)
    assert "must be UTF-8 text" in fails(
        "translate", "mini", "--input", binary / "deu_Latn.txt", "--source", "de", "--target", "en"
    )
    assert not (tmp_path / "s.safetensors").exists()


def test_masks_that_do_not_fit(fails, flow, tmp_path):
    masks, spec = MaskSet.load(flow / "masks.json"), load_spec(TINY)
    other = tmp_path / "other.json"
    MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="global",
        masks={stack.name: {"*": ((0, 1), (2, 3))} for stack in spec.stacks},
    ).save(other)
    translate = ("translate", "mini", "x", "--source", "en")
    assert "must belong to the model" in fails(*translate, "--target", "de", "--masks", other)
    assert "same layers" in fails("masks", "compare", other, flow / "masks.json")
    assert "must have a mask" in fails(*translate, "--target", "tr", "--masks", flow / "masks.json")
    content = json.loads(masks.to_text())
    content["masks"]["encoder"]["eng_Latn"][1] = [5]
    few = tmp_path / "few.json"
    few.write_text(json.dumps(content))
    assert "must keep 2 or more experts a layer, but layer 1 keeps 1" in fails(
        *translate, "--target", "de", "--masks", few
    )
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"eng_Latn": [0, 1, 64, 65, 128, 999]}))
    assert "must be a list of expert numbers 0 to 383" in fails(
        "masks", "import", index, "--model", "mini", "--output", tmp_path / "m"
    )


def test_truncated_checkpoint(fails, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    for arguments in (
        ["inspect", folder],
        ["calibrate", folder, "--output", tmp_path / "s"],
        ["translate", folder, "x", "--source", "en", "--target", "de"],
    ):
        assert "must be a whole weight file, but is truncated or damaged" in fails(*arguments)


def test_dense_model(fails, flow, dense, tmp_path):
    index = tmp_path / "index.json"
    index.write_text("[0, 1]")
    for arguments in (
        ["inspect", dense],
        ["calibrate", dense, "--output", tmp_path / "s"],
        ["translate", dense, "x", "--source", "en", "--target", "de", "--masks", flow / "masks.json"],
        ["masks", "import", index, "--model", dense, "--output", tmp_path / "m"],
    ):
        assert "is a dense model (m2m_100): without experts there is nothing to prune" in fails(*arguments)


def test_model_without_tokenizer_or_text(fails, tmp_path):
    assert "must hold a tokenizer" in fails("translate", TINY, "x", "--source", "en", "--target", "de")
    assert "must hold a tokenizer" in fails("calibrate", TINY, "--output", tmp_path / "s")
    own = tmp_path / "own"
    shutil.copytree(embedded_text().parent, own, ignore=shutil.ignore_patterns("text"))
    assert "`--text` must name aligned text" in fails("calibrate", own, "--output", tmp_path / "s")


# usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["prune"],
        ["calibrate"],
        ["calibrate", "mini"],
        ["calibrate", "mini", "--output", "s", "--sentences", "0"],
        ["calibrate", "mini", "--output", "s", "--sentences", "few"],
        ["calibrate", "mini", "--output", "s", "--granularity", "global"],
        ["calibrate", "mini", "--output", "s", "--dtype", "int8"],
        ["calibrate", "mini", "--output", "s", "--threads", "0"],
        ["plan", "s", "--output", "m"],
        ["evaluate", "mini", "--output", "s", "--beams", "0"],
        ["translate", "mini", "x", "--source", "en"],
        ["translate", "mini", "x", "--source", "en", "--target", "de", "--beams", "-1"],
        ["masks"],
        ["masks", "delete", "m"],
        ["masks", "compare", "m"],
        ["stats", "merge", "--output", "m"],
    ],
    ids=" ".join,
)
def test_wrong_usage(cli, arguments):
    status, out, err = cli(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: nllb-prune")
    assert "error: " in err.splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(cli, verb):
    status, out, err = cli(verb, "--help")
    assert (status, err) == (0, "")
    *_, heading, example = out.rstrip().splitlines()
    assert heading == "example:"
    assert example.startswith(f"  nllb-prune {verb}")
    assert "--debug" in out


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_example_can_be_parsed(cli, verb):
    example = cli(verb, "--help")[1].rstrip().splitlines()[-1]
    options = parser().parse_args(shlex.split(example)[1:])
    assert isinstance(options, argparse.Namespace)
    assert options.verb == verb


def test_version(cli):
    assert cli("--version") == (0, f"nllb-prune {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "maxi", "--debug"],
        ["masks", "show", "none.json", "--debug"],
        ["masks", "--debug", "show", "none.json"],
        ["stats", "show", "none", "--debug"],
    ],
    ids=" ".join,
)
def test_debug_raises(arguments):
    with pytest.raises(UsageError):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "mini"], "nllb-prune inspect: interrupted.\n"),
        (
            ["calibrate", "mini", "--output", "statistics"],
            "nllb-prune calibrate: interrupted; the same command continues where it stopped.\n",
        ),
    ],
)
def test_interrupt_says_how_to_go_on(cli, monkeypatch, arguments, says):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("nllb_prune.model.loading.load_spec", interrupted)
    assert cli(*arguments) == (130, "", says)


# as a program


def program(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, **options)


def test_program(tmp_path):
    source = "play music\n\nstop\n"
    arguments = ("-m", "nllb_prune", "translate", "mini", "--source", "eng_Latn", "--target", "deu_Latn")
    done = program(*arguments, input=source, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 3
    assert done.stdout.split("\n")[1] == ""


def test_program_that_fails(tmp_path):
    done = program("-m", "nllb_prune", "masks", "show", "none.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "nllb-prune masks: `none.json` must be a mask file, but there is no such file.\n"


@pytest.mark.parametrize("arguments", [["--help"], ["calibrate", "--help"], ["masks", "show", "none.json"]])
def test_help_and_files_alone_do_not_import_torch(arguments):
    script = (
        "import sys\n"
        "from nllb_prune.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(sorted({'torch', 'transformers', 'sacrebleu', 'matplotlib'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = program("-c", script)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "[]"


def test_text_may_stand_behind_options(cli):
    status, out, err = cli("translate", "mini", "--source", "en", "--target", "de", "play music", "stop")
    assert (status, len(out.splitlines()), err) == (0, 2, "")
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "mini", "more"])
    assert stopped.value.code == 2
