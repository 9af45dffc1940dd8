"""`export` and `inspect --verify` through the command line; whatever is wrong is one line."""

import json
import shutil
import subprocess
import sys

import pytest

from nllb_prune import load_spec
from nllb_prune.cli import main
from nllb_prune.masks import MaskSet
from tests.killed import run_killed


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A file of masks of three languages, and one that is for all."""
    folder, spec = tmp_path_factory.mktemp("masks"), load_spec("mini")
    kept = {stack.name: [list(range(n, n + 8)) for n in range(len(stack.layers))] for stack in spec.stacks}
    for name, keys in (("masks", ("eng_Latn", "deu_Latn", "spa_Latn")), ("global", ("*",))):
        MaskSet(
            model_name="mini",
            fingerprint=spec.fingerprint,
            stacks=spec.stacks,
            granularity="global" if keys == ("*",) else "language",
            masks={stack: dict.fromkeys(keys, mask) for stack, mask in kept.items()},
        ).save(folder / f"{name}.json")
    return folder


def export(masks, output, *more, name="masks"):
    return main(["export", "mini", "--masks", str(masks / f"{name}.json"), "--output", str(output), *more])


@pytest.mark.parametrize(
    ("asked", "name", "sources", "targets"),
    [
        (["--source", "en", "--target", "deu_Latn"], "masks", ["eng_Latn"], ["deu_Latn"]),
        (["--source", "en", "--target", "de,es"], "masks", ["eng_Latn"], ["deu_Latn", "spa_Latn"]),
        (["--languages", "de,es"], "masks", ["deu_Latn", "spa_Latn"], ["deu_Latn", "spa_Latn"]),
        (["--directions", "*-eng_Latn"], "masks", ["deu_Latn", "spa_Latn"], ["eng_Latn"]),
        ([], "global", [], []),
    ],
    ids=str,
)
def test_the_languages_asked_for(asked, name, sources, targets, masks, tmp_path, capsys):
    assert export(masks, tmp_path / "out", *asked, "--json", name=name) == 0
    told = json.loads(capsys.readouterr().out)
    said = json.loads((tmp_path / "out" / "config.json").read_text())["expert_pruning"]
    assert (said["sources"], said["targets"]) == (sources, targets)
    assert told["experts"] == {"encoder": 24, "decoder": 24}
    assert told["bytes_read"] / told["bytes_kept"] < 1.05
    assert told["bytes_written"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))


def test_the_whole_way(masks, tmp_path, capsys):
    output = tmp_path / "out"
    evaluation = tmp_path / "scores.md"
    evaluation.write_text("| chrF++ | 36.2 |\n")
    more = ("--source", "en", "--target", "de", "--dtype", "bf16", "--experts", "int8", "--evaluation", str(evaluation))
    assert export(masks, output, *more) == 0
    assert "24 encoder, 24 decoder experts" in capsys.readouterr().out
    assert main(["inspect", str(output), "--verify"]) == 0
    told = capsys.readouterr().out
    assert "pruned from mini for eng_Latn into deu_Latn" in told
    assert "experts in int8" in told
    assert "files are as the manifest says" in told
    assert main(["inspect", str(output), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["expert_pruning"]["experts"]["name"] == "int8"
    assert main(["translate", str(output), "wake me up", "--source", "en", "--target", "de"]) == 0
    assert capsys.readouterr().out.strip()
    card = (output / "README.md").read_text()
    assert card.startswith("---\nbase_model: mini\nlicense: cc-by-4.0\nlanguage: [de, en]\n")
    assert "| chrF++ | 36.2 |" in card
    assert "weights in bfloat16" in card


def test_a_trimmed_vocabulary(masks, tmp_path, capsys):
    from nllb_prune.model.source import embedded_text

    text = str(embedded_text())
    assert export(masks, tmp_path / "out", "--source", "en", "--target", "de", "--trim-vocabulary", text) == 0
    capsys.readouterr()
    outputs = []
    for model, more in (("mini", ["--masks", str(masks / "masks.json")]), (str(tmp_path / "out"), [])):
        assert main(["translate", model, "wake me up at nine", "--source", "en", "--target", "de", *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == config["expert_pruning"]["vocabulary"]["pieces"] < 6012
    assert sorted(config["expert_pruning"]["language_tokens"]) == ["deu_Latn", "eng_Latn"]
    assert main(["translate", str(tmp_path / "out"), "hola", "--source", "es", "--target", "de"]) == 1
    assert "must be one of the model's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "must be given, but are not"),
        (["--source", "en"], "must be `--source` and `--target`"),
        (["--source", "en", "--target", "de", "--languages", "en,de"], "must be `--source` and `--target`"),
        (["--source", "en", "--target", "fr"], "fra_Latn"),
        (["--source", "en", "--target", "de", "--shard-size", "many"], "`--shard-size` must be a size"),
        (["--source", "en", "--target", "de", "--split", "dev"], "must come with `--trim-vocabulary`"),
        (["--source", "en", "--target", "en"], "must be two or more different ones"),
        (["--languages", "en"], "must be two or more different ones"),
        (["--source", "en", "--target", "de", "--evaluation", "nothing.md"], "cannot be read"),
        (["--source", "en", "--target", "de", "--trim-vocabulary", "nothing"], "nothing"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line(asked, message, masks, tmp_path, capsys):
    assert export(masks, tmp_path / "out", *asked) == 1
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced_unless_asked(masks, tmp_path, capsys):
    asked = ("--source", "en", "--target", "de")
    assert export(masks, tmp_path / "out", *asked) == 0
    assert export(masks, tmp_path / "out", "--source", "de", "--target", "en") == 1
    assert "must not exist yet" in capsys.readouterr().err
    assert export(masks, tmp_path / "out", "--source", "de", "--target", "en", "--restart") == 0
    said = json.loads((tmp_path / "out" / "config.json").read_text())["expert_pruning"]
    assert said["sources"] == ["deu_Latn"]


@pytest.mark.parametrize("fault", ["bit", "short", "gone", "more"])
def test_verify_names_what_is_wrong(fault, masks, tmp_path, capsys):
    output = tmp_path / "out"
    assert export(masks, output, "--source", "en", "--target", "de") == 0
    weights = output / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if fault == "bit":
        content[-7] ^= 4
        weights.write_bytes(content)
    elif fault == "short":
        weights.write_bytes(content[:-100])
    elif fault == "gone":
        (output / "tokenizer.json").unlink()
    else:
        shutil.copy(weights, output / "model-00001-of-00002.safetensors")
    capsys.readouterr()
    assert main(["inspect", str(output), "--verify"]) == 1
    told = capsys.readouterr().err
    named = {"gone": "tokenizer.json", "more": "model-00001-of-00002.safetensors"}.get(fault, "model.safetensors")
    assert f"`{named}`" in told
    assert len(told.strip().splitlines()) == 1


def test_a_killed_export_continues_to_the_same_bytes(masks, tmp_path):
    arguments = ["--languages", "en,de,es", "--shard-size", "400kB", "--masks", str(masks / "masks.json")]

    def command(output):
        return [sys.executable, "-m", "nllb_prune", "export", "mini", *arguments, "--output", str(tmp_path / output)]

    assert subprocess.run(command("whole"), check=False).returncode == 0
    partial = tmp_path / "killed.partial"
    run_killed("os.rename", ".safetensors", 5, *command("killed")[3:])
    assert not (tmp_path / "killed").exists()
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("shards/*.safetensors")}
    assert before
    assert subprocess.run(command("killed"), check=False).returncode == 0
    assert not partial.exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }
    kept = {path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    assert kept & set(before.values())  # those are not written again


@pytest.mark.parametrize("name", [None, "masks"])
def test_a_streamed_model_translates_the_same(name, masks, capsys):
    asked = ["translate", "mini", "wake me up at nine", "--source", "en", "--target", "de"]
    asked += [] if name is None else ["--masks", str(masks / f"{name}.json")]
    outputs = []
    for more in ([], ["--stream"], ["--stream", "--stream-memory", "20MB"]):
        assert main([*asked, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert len(set(outputs)) == 1
    assert main([*asked, "--stream-memory", "20MB"]) == 1
    assert "must come with `--stream`" in capsys.readouterr().err


def test_parts_are_translated_with_the_files_of_their_sides(masks, tmp_path, capsys):
    output = tmp_path / "out"
    assert export(masks, output, "--languages", "en,de,es", "--parts") == 0
    for side in ("encoder", "decoder"):
        (output / f"{side}.spa_Latn.safetensors").unlink()
    capsys.readouterr()
    found = []
    for model, more in (("mini", ["--masks", str(masks / "masks.json")]), (str(output), [])):
        assert main(["translate", model, "wake me up at nine", "--source", "en", "--target", "de", *more]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_only_exports_are_verified(capsys):
    assert main(["inspect", "mini", "--verify"]) == 1
    assert "must be of a folder that `export` wrote" in capsys.readouterr().err
