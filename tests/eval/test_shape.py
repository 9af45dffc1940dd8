"""Generated checkpoints are what torch, safetensors and transformers read, and have the places of the real one."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from eval.shape.checkpoint import files_of, generate, tensors_of
from eval.shape.circle import Step, circle, run
from eval.shape.measured import measure
from eval.shape.shapes import EMBEDDED_TOKENS, SHAPES
from eval.shape.sizes import Form, counts, shape_bytes
from eval.shape.values import drawn_rows, values
from nllb_prune import load_model, load_spec, load_tokenizer
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.masks import MaskSet
from nllb_prune.tokenization import known_languages

TINY = SHAPES["tiny"]
PAIR = ("eng_Latn", "deu_Latn")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model in both formats, the `.bin` one in several files."""
    root = tmp_path_factory.mktemp("shape")
    generate(root / "bin", shape=TINY, format="bin", shard_size="800KB")
    generate(root / "safetensors", shape=TINY, format="safetensors")
    return root


@pytest.fixture(scope="module")
def masks(folders):
    spec = load_spec(folders / "bin")
    kept = {
        stack.name: (tuple(range(count)),) * len(stack.layers)
        for stack, count in zip(spec.stacks, TINY.counts, strict=True)
    }
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="language",
        masks={name: dict.fromkeys(PAIR, mask) for name, mask in kept.items()},
        plan={},
    )


def read_bin(folder):
    files = sorted(folder.glob("*.bin"))
    return {name: each for file in files for name, each in torch.load(file, mmap=True, weights_only=True).items()}


def test_the_54b_has_the_files_of_the_real_one():
    tensors = tensors_of(SHAPES["nllb-54b"], bare=True, dtype="float32")
    plan = files_of(tensors, "bin")
    files = list(plan.filename_to_tensors)
    assert (files[0], files[-1]) == ("pytorch_model-00001-of-00023.bin", "pytorch_model-00023-of-00023.bin")
    assert len(files) == 23
    names = plan.tensor_to_filename
    assert names["shared.weight"] == names["encoder.embed_tokens.weight"] == files[0]
    assert names["decoder.embed_tokens.weight"] != files[0]
    assert not any(name.startswith(("model.", "lm_head.")) for name in names)
    tied = sum(tensors[f"{stack}.embed_tokens.weight"].numel() for stack in ("encoder", "decoder"))
    assert sum(each.numel() for each in tensors.values()) - tied == 54_500_569_088  # 54.5 billion
    assert tensors["encoder.layers.23.ffn.experts.expert_127.fc1.weight"].shape == (8192, 2048)


def test_both_formats_hold_the_drawn_values(folders):
    ours, theirs = read_bin(folders / "bin"), load_file(folders / "safetensors" / "model.safetensors")
    index = json.loads((folders / "bin" / "pytorch_model.bin.index.json").read_text("utf-8"))
    assert len(set(index["weight_map"].values())) > 1
    assert set(index["weight_map"]) == set(ours)
    assert {name.removeprefix("model.") for name in theirs} | {
        f"{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")
    } == set(ours)
    for name, tensor in theirs.items():
        assert torch.equal(tensor, ours[name.removeprefix("model.")]), name
        assert torch.equal(tensor, values(name, tuple(tensor.shape), seed=0)), name
    assert torch.equal(ours["decoder.embed_tokens.weight"], ours["shared.weight"])
    with safe_open(folders / "safetensors" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_names_of_one_embedding_share_their_bytes(tmp_path):
    generate(tmp_path / "one", shape=TINY, format="bin")
    tensors = read_bin(tmp_path / "one")
    assert tensors["shared.weight"].data_ptr() == tensors["encoder.embed_tokens.weight"].data_ptr()


def test_transformers_finds_every_tensor(folders):
    from transformers import AutoModelForSeq2SeqLM

    model, found = AutoModelForSeq2SeqLM.from_pretrained(folders / "bin", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    held = model.state_dict()
    assert all(torch.equal(held[f"model.{name}"], each) for name, each in read_bin(folders / "bin").items())


def test_the_package_reads_the_same_model_from_both(folders):
    specs = [load_spec(folders / name) for name in ("bin", "safetensors")]
    assert specs[0].fingerprint == specs[1].fingerprint
    ids, start = torch.tensor([[5990, 7, 40, 2]]), torch.tensor([[2, 5991, 9]])
    with torch.inference_mode():
        logits = [
            load_model(folders / name)(input_ids=ids, decoder_input_ids=start).logits for name in ("bin", "safetensors")
        ]
    assert torch.equal(*logits)
    tokenizer = load_tokenizer(folders / "bin")
    assert set(PAIR) <= set(known_languages(tokenizer))
    assert len(tokenizer) <= EMBEDDED_TOKENS


@pytest.mark.parametrize("format", ["bin", "safetensors"])
def test_experts_are_holes(tmp_path, format):
    shape = replace(TINY, d_model=256, ffn=512, random_experts=False)  # 2 * 2 * 16 experts of 1 MB
    generate(tmp_path / "model", shape=shape, format=format)
    status = [path.stat() for path in (tmp_path / "model").iterdir()]
    assert sum(each.st_size for each in status) - sum(each.st_blocks * 512 for each in status) > 60e6
    prefix = "" if format == "bin" else "model."
    tensors = read_bin(tmp_path / "model") if format == "bin" else load_file(tmp_path / "model" / "model.safetensors")
    assert not tensors[f"{prefix}encoder.layers.1.ffn.experts.expert_3.fc1.weight"].any()
    assert tensors[f"{prefix}encoder.layers.1.ffn.router.classifier.weight"].all()


@pytest.mark.parametrize(
    ("name", "rows", "layers", "drawn"),
    [
        ("shared.weight", 256_206, None, EMBEDDED_TOKENS),
        ("model.decoder.embed_tokens.weight", 256_206, 0, EMBEDDED_TOKENS),
        ("encoder.layers.3.ffn.experts.expert_0.fc1.weight", 8192, None, 0),
        ("encoder.layers.3.ffn.experts.expert_0.fc2.bias", 2048, None, 0),
        ("encoder.layers.3.ffn.router.classifier.weight", 128, 0, 128),
        ("encoder.layers.4.ffn.fc1.weight", 8192, 5, 8192),
        ("encoder.layers.5.ffn.fc1.weight", 8192, 5, 0),
        ("model.decoder.layers.23.self_attn.k_proj.weight", 2048, None, 2048),
        ("decoder.layers.23.self_attn.k_proj.bias", 2048, 0, 2048),
        ("decoder.layers.23.ff_layer_norm.weight", 2048, 0, 2048),
        ("decoder.layer_norm.weight", 2048, 0, 2048),
    ],
)
def test_what_is_drawn(name, rows, layers, drawn):
    assert drawn_rows(name, rows, SHAPES["nllb-54b"], random_layers=layers) == drawn


def test_values_depend_on_name_and_seed_alone():
    name, size = "encoder.layers.1.ffn.fc1.weight", (8, 4)
    assert torch.equal(values(name, size, seed=1), values(f"model.{name}", size, seed=1))
    assert not torch.equal(values(name, size, seed=1), values(name, size, seed=2))
    assert not torch.equal(values(name, size, seed=1), values(name.replace("1", "2"), size, seed=1))


def test_equal_settings_give_equal_bytes_and_a_finished_folder_stays(folders, tmp_path):
    generate(tmp_path / "again", shape=TINY, format="bin", shard_size="800KB")
    for path in (folders / "bin").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(FileExistsError, match="must be a new folder"):
        generate(tmp_path / "again", shape=TINY, format="bin")
    assert {path.name for path in tmp_path.iterdir()} == {"again"}


@pytest.mark.parametrize(
    "settings",
    [
        ExportSettings(),
        ExportSettings(dtype=torch.bfloat16),
        ExportSettings(experts="int8"),
        ExportSettings(dtype=torch.bfloat16, experts="int4"),
    ],
    ids=["as stored", "bfloat16", "int8", "bfloat16, int4"],
)
def test_computed_sizes_are_those_of_an_export(folders, masks, tmp_path, settings):
    assert counts(TINY, 0.25) == TINY.counts
    export(folders / "bin", tmp_path / "export", masks=masks, directions=[PAIR], settings=settings)
    written = load_file(tmp_path / "export" / "model.safetensors")
    computed = shape_bytes(TINY, Form(kept=0.25, settings=settings), dtype="float32", rows=0)
    assert computed == sum(each.nbytes for each in written.values())


def test_the_published_budgets():
    assert counts(SHAPES["nllb-54b"], 0.1875) == SHAPES["nllb-54b"].counts == (36, 12)
    assert counts(SHAPES["nllb-54b"], 0.25) == (48, 16)
    assert counts(SHAPES["nllb-54b"], 1.0) == (128, 128)


def test_a_command_is_measured(tmp_path):
    given = tmp_path / "given"
    given.write_bytes(bytes(30_000_000))
    code = (
        "import sys, time; content = open(sys.argv[1], 'rb').read(); held = bytearray(b'1') * 100_000_000; "
        "open(sys.argv[2], 'wb').write(content[:20_000_000]); time.sleep(.2); print('done')"
    )
    found = measure([sys.executable, "-c", code, str(given), str(tmp_path / "made")], log=tmp_path / "log")
    assert found.output == "done\n"
    assert 0.2 < found.seconds < 60
    assert 0 < found.processor_seconds < 60
    assert 30_000_000 < found.read < 31_000_000
    assert 20_000_000 <= found.written < 20_100_000
    assert found.peak > 130_000_000
    assert 130_000_000 < found.anonymous <= found.peak


def test_a_command_that_fails_ends_the_run(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)status 3:.*why"):
        measure([sys.executable, "-c", "import sys; print('why'); sys.exit(3)"], log=tmp_path / "log")


def counting(folder, name, *words):
    """A step that leaves a line each time it runs, and a file."""
    code = f"open({str(folder / 'ran')!r}, 'a').write('{name} '); open({str(folder / name)!r}, 'x')"
    return Step(command=(sys.executable, "-c", code, *words), makes=(folder / name,))


def test_finished_steps_stay_and_a_changed_one_runs_with_all_that_follow(tmp_path):
    steps = {name: counting(tmp_path, name) for name in ("first", "second", "third")}
    found = run(tmp_path, steps)
    assert run(tmp_path, steps)["steps"] == found["steps"]
    assert (tmp_path / "ran").read_text() == "first second third "
    run(tmp_path, steps | {"second": counting(tmp_path, "second", "another option")})
    assert (tmp_path / "ran").read_text() == "first second third second third "


def test_a_run_that_broke_goes_on(tmp_path):
    broken = Step(command=(sys.executable, "-c", "raise SystemExit(1)"))
    first, last = (counting(tmp_path, name) for name in ("first", "last"))
    with pytest.raises(SystemExit):
        run(tmp_path, {"first": first, "broken": broken, "last": last})
    run(tmp_path, {"first": first, "last": last})
    assert (tmp_path / "ran").read_text() == "first last "


@pytest.mark.slow
def test_the_whole_circle(tmp_path):
    from eval.shape.compare import compare

    steps = circle(tmp_path, "tiny", sentences=4, exporting=["--shard-size", "1MB"])
    found = run(tmp_path, steps)
    assert list(found["steps"]) == list(steps)
    assert "files are as the manifest says" in "".join(found["steps"]["verify"]["output"])
    rows = compare(tmp_path / "model", tmp_path / "export", tmp_path / "masks.json", PAIR)
    *loaded, unmasked = rows
    assert all(row["difference"] < 1e-4 and row["equal"] == row["translations"] for row in loaded)
    assert unmasked["difference"] > 1e-2
