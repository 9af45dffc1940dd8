"""Exported checkpoints hold what was asked for, and compute what the full model computes within the same masks."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nllb_prune import load_model, load_spec, load_tokenizer, translations
from nllb_prune.errors import UsageError
from nllb_prune.exporting.export import export
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.generation.search import SearchSettings
from nllb_prune.masks import MaskSet
from nllb_prune.model.pruned import pruning_of
from nllb_prune.model.routing import routing, routing_of
from nllb_prune.model.source import model_folder
from nllb_prune.model.teacher_forcing import forced_batch, forced_states
from nllb_prune.planning.union import global_union
from nllb_prune.tokenization import encode

LANGUAGES = ("arb_Arab", "deu_Latn", "eng_Latn", "hin_Deva", "spa_Latn")
SENTENCES = {
    "eng_Latn": ["wake me up at nine", "play some jazz please", "is it going to rain tomorrow", "turn off the lights"],
    "deu_Latn": ["weck mich um neun uhr auf", "spiel etwas jazz", "wird es morgen regnen", "mach das licht aus"],
    "spa_Latn": ["despiértame a las nueve", "pon algo de jazz", "va a llover mañana", "apaga las luces"],
    "arb_Arab": ["أيقظني في التاسعة", "شغل موسيقى الجاز", "هل ستمطر غدا", "أطفئ الأنوار"],
    "hin_Deva": ["मुझे नौ बजे जगाओ", "थोड़ा जैज़ बजाओ", "क्या कल बारिश होगी", "बत्तियाँ बंद करो"],
}
DIRECTIONS = [
    ("eng_Latn", "deu_Latn"),
    ("deu_Latn", "eng_Latn"),
    ("spa_Latn", "arb_Arab"),
    ("hin_Deva", "spa_Latn"),
    ("arb_Arab", "hin_Deva"),
]
ONE_TO_MANY = [("eng_Latn", target) for target in ("deu_Latn", "spa_Latn", "hin_Deva")]
UNION = [(source, target) for source in LANGUAGES[:3] for target in LANGUAGES[:3] if source != target]
BEAM = SearchSettings(beams=4)


def logits(model, tokenizer, direction, *, masks=None):
    """Of every reference token of a direction ``(tokens, vocabulary)``."""
    source, target = (encode(tokenizer, SENTENCES[code], code) for code in direction)
    batch = forced_batch(model, source, target)
    with torch.inference_mode(), routing(model, masks=masks):
        return model.get_output_embeddings()(forced_states(model, batch)[batch.labels >= 0])


def rows(masks, directions):
    """The union of the masks of directions as `routing` takes it."""
    from nllb_prune.model.routing import mask_rows

    return mask_rows(global_union([masks], directions), [directions[0]])


def beam(model, tokenizer, direction, masks=None):
    source, target = direction
    found = translations(model, tokenizer, SENTENCES[source], source=source, target=target, masks=masks, search=BEAM)
    return [[(each.text, pytest.approx(each.score, abs=1e-4)) for each in best] for best in found]


def weights(folder):
    """Every tensor on the disk, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


@pytest.fixture(scope="module")
def exported(masks, tmp_path_factory):
    """Makes checkpoints, each once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def make(directions, **settings):
        key = (tuple(directions), *sorted(settings.items()))
        if key not in made:
            made[key] = folder / f"checkpoint-{len(made)}"
            export("mini", made[key], masks=masks, directions=list(directions), settings=ExportSettings(**settings))
        return made[key]

    return make


@pytest.mark.parametrize("direction", DIRECTIONS, ids="-".join)
def test_a_direction_computes_what_the_masked_model_does(direction, exported, masks, mini, tokenizer):
    folder = exported([direction])
    model = load_model(folder)
    wanted = logits(mini, tokenizer, direction, masks=rows(masks, [direction]))
    torch.testing.assert_close(logits(model, tokenizer, direction), wanted, rtol=1e-5, atol=1e-5)
    assert beam(model, load_tokenizer(folder), direction) == beam(mini, tokenizer, direction, masks)
    assert {s: len(m[0]) for s, m in routing_of(model).resident.items()} == {
        s: len(m[0]) for s, m in masks.direction(*direction).items()
    }


@pytest.mark.parametrize("directions", [UNION, ONE_TO_MANY], ids=["union", "one-to-many"])
def test_several_directions_are_their_union(directions, exported, masks, mini, tokenizer):
    model, union = load_model(exported(directions)), global_union([masks], directions)
    for direction in directions[:2]:
        wanted = logits(mini, tokenizer, direction, masks=rows(masks, directions))
        torch.testing.assert_close(logits(model, tokenizer, direction), wanted, rtol=1e-5, atol=1e-5)
        assert beam(model, tokenizer, direction) == beam(mini, tokenizer, direction, union)
        # within the masks of the direction it is the model of that direction
        assert beam(model, tokenizer, direction, masks) == beam(mini, tokenizer, direction, masks)


@pytest.mark.parametrize("parts", [False, True])
def test_a_direction_of_several_is_loaded_alone(parts, exported, masks, mini, tokenizer, tmp_path):
    direction = ("eng_Latn", "spa_Latn")
    folder = exported(ONE_TO_MANY, parts=parts)
    if parts:  # nothing else is read
        folder = shutil.copytree(folder, tmp_path / "copy")
        for path in folder.glob("decoder.*.safetensors"):
            if "spa_Latn" not in path.name:
                path.unlink()
    model = load_model(folder, direction=direction)
    assert routing_of(model).resident == masks.direction(*direction)
    torch.testing.assert_close(
        logits(model, tokenizer, direction),
        logits(mini, tokenizer, direction, masks=rows(masks, [direction])),
        rtol=1e-5,
        atol=1e-5,
    )


def test_parts_hold_each_language_side_and_the_dense_part_once(exported, masks):
    folder = exported(ONE_TO_MANY, parts=True)
    names = {path.name for path in folder.glob("*.safetensors")}
    assert names == {
        "dense.safetensors",
        "encoder.eng_Latn.safetensors",
        *(f"decoder.{target}.safetensors" for _, target in ONE_TO_MANY),
    }
    with safe_open(folder / "dense.safetensors", framework="pt") as dense:
        assert not any(".experts." in name for name in dense.keys())  # noqa: SIM118
    for _, target in ONE_TO_MANY:
        with safe_open(folder / f"decoder.{target}.safetensors", framework="pt") as side:
            experts = {name.split(".fc")[0] for name in side.keys()}  # noqa: SIM118
        assert len(experts) == sum(map(len, masks.masks["decoder"][target]))
    assert beam(load_model(folder), load_tokenizer("mini"), ONE_TO_MANY[0], masks)


@pytest.mark.parametrize("settings", [{}, {"shard_bytes": 2_000_000}, {"parts": True}], ids=str)
def test_the_auto_classes_load_it(settings, exported, masks, mini):
    directions = ONE_TO_MANY
    folder = exported(directions, **settings)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "PrunedNllbMoeForConditionalGeneration"
    direction = directions[0]
    torch.testing.assert_close(
        logits(model, tokenizer, direction),
        logits(mini, load_tokenizer("mini"), direction, masks=rows(masks, directions)),
        rtol=1e-5,
        atol=1e-5,
    )
    tokenizer.src_lang = direction[0]
    inputs = tokenizer(SENTENCES[direction[0]], return_tensors="pt", padding=True)
    forced = tokenizer.convert_tokens_to_ids(direction[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = model.generate(**inputs, forced_bos_token_id=forced, num_beams=4, max_new_tokens=40)
    texts = [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]
    union = global_union([masks], directions)
    source, target = direction
    ours = translations(mini, tokenizer, SENTENCES[source], source=source, target=target, masks=union, search=BEAM)
    assert texts == [best[0].text for best in ours]


def test_bfloat16_is_the_full_model_in_bfloat16(exported, masks, tokenizer):
    direction = DIRECTIONS[0]
    model = load_model(exported([direction], dtype=torch.bfloat16), dtype="auto")
    full = load_model("mini", dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    wanted = logits(full, tokenizer, direction, masks=rows(masks, [direction]))
    assert torch.equal(logits(model, tokenizer, direction), wanted)
    assert {t.dtype for t in weights(exported([direction], dtype=torch.bfloat16)).values()} == {torch.bfloat16}


@pytest.mark.parametrize(("experts", "tolerance"), [("int8", 0.02), ("int4", 0.35)])
def test_experts_of_few_bits_are_near(experts, tolerance, exported, masks, mini, tokenizer):
    direction = DIRECTIONS[0]
    folder = exported([direction], experts=experts)
    model = load_model(folder)
    near = logits(model, tokenizer, direction).log_softmax(-1)
    wanted = logits(mini, tokenizer, direction, masks=rows(masks, [direction])).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(near, wanted, log_target=True, reduction="batchmean")
    assert 0 < float(divergence) < tolerance
    plain = exported([direction])
    assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) < sum(
        p.stat().st_size for p in plain.glob("*.safetensors")
    )
    assert pruning_of(model.config).scheme.name == experts
    again = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert torch.equal(logits(again, tokenizer, direction), logits(model, tokenizer, direction))


def test_only_what_is_kept_is_there_bit_by_bit(exported, masks):
    direction = DIRECTIONS[2]
    found, full = weights(exported([direction])), weights(model_folder("mini"))
    assert all(torch.equal(tensor, full[name]) for name, tensor in found.items())
    experts = {name.split(".fc")[0] for name in found if ".experts." in name}
    assert len(experts) == masks.kept(*direction)
    assert {name for name in full if ".experts." not in name} >= {name for name in found if ".experts." not in name}


def test_the_configuration_keeps_every_field_and_says_what_was_done(exported, masks):
    config = json.loads((exported(ONE_TO_MANY) / "config.json").read_text())
    original = json.loads((model_folder("mini") / "config.json").read_text())
    assert {n: v for n, v in config.items() if n in original and n not in ("model_type", "architectures")} == {
        n: v for n, v in original.items() if n not in ("model_type", "architectures")
    }
    assert config["model_type"] == "nllb-prune-nllb-moe"
    assert config["architectures"] == ["PrunedNllbMoeForConditionalGeneration"]
    said = config["expert_pruning"]
    assert (said["base_model"], said["base_model_type"]) == ("mini", "nllb-moe")
    assert said["kept"] == {stack: [list(ids) for ids in mask] for stack, mask in masks.union(ONE_TO_MANY).items()}
    assert (said["sources"], said["targets"]) == (["eng_Latn"], ["deu_Latn", "hin_Deva", "spa_Latn"])
    assert said["plan"] == {"criterion": "random", "kept_experts": 96}
    assert said["language_tokens"]["deu_Latn"] == load_tokenizer("mini").convert_tokens_to_ids("deu_Latn")
    own = MaskSet.load(exported(ONE_TO_MANY) / "masks.json")
    assert own.signature == said["masks"]
    assert {s: sorted(m) for s, m in own.masks.items()} == {
        "encoder": ["eng_Latn"],
        "decoder": ["deu_Latn", "hin_Deva", "spa_Latn"],
    }


def test_equal_input_gives_equal_bytes(exported, masks, tmp_path):
    export("mini", tmp_path / "again", masks=masks, directions=[DIRECTIONS[0]])
    first = exported([DIRECTIONS[0]])
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_other_languages_warn_by_name(exported, tokenizer):
    model = load_model(exported([DIRECTIONS[0]]))
    with pytest.warns(UserWarning, match=r"eng_Latn into deu_Latn, not those for deu_Latn-spa_Latn"):
        translations(model, tokenizer, ["hallo"], source="deu_Latn", target="spa_Latn")
    tokenizer.src_lang = "hin_Deva"
    inputs = tokenizer(["hallo"], return_tensors="pt")
    with pytest.warns(UserWarning, match="not those for hin_Deva-deu_Latn"):
        model.generate(**inputs, forced_bos_token_id=tokenizer.convert_tokens_to_ids("deu_Latn"), max_new_tokens=3)


@pytest.mark.parametrize("settings", [{}, {"experts": "int4"}, {"dtype": torch.bfloat16}], ids=str)
def test_saving_round_trips(settings, exported, tokenizer, tmp_path):
    folder = exported([DIRECTIONS[0]], **settings)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="auto")
    model.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert torch.equal(logits(again, tokenizer, DIRECTIONS[0]), logits(model, tokenizer, DIRECTIONS[0]))
    before, after = weights(folder), weights(tmp_path / "saved")
    routers = {name for name in before if ".router." in name}  # held in float32
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].to(after[name].dtype), after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before.keys() - routers)
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1


def test_a_checkpoint_is_exported_from_another(exported, masks, mini, tokenizer, tmp_path):
    direction = ("eng_Latn", "hin_Deva")
    export(exported(ONE_TO_MANY), tmp_path / "one", masks=masks, directions=[direction])
    direct = exported([direction])
    assert weights(tmp_path / "one").keys() == weights(direct).keys()
    assert beam(load_model(tmp_path / "one"), tokenizer, direction) == beam(mini, tokenizer, direction, masks)
    assert json.loads((tmp_path / "one" / "config.json").read_text())["expert_pruning"]["base_model"] == "mini"
    with pytest.raises(UsageError, match=r"was left out; export it from mini"):
        export(exported(ONE_TO_MANY), tmp_path / "two", masks=masks, directions=[("arb_Arab", "hin_Deva")])


def test_without_the_package_its_name_is_told(exported):
    """In a process whose import of the package fails, transformers alone is asked."""
    script = (
        "import sys; sys.modules['nllb_prune'] = None\n"
        "from transformers import AutoModelForSeq2SeqLM\n"
        f"AutoModelForSeq2SeqLM.from_pretrained({str(exported([DIRECTIONS[0]]))!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "nllb-prune-nllb-moe" in done.stderr.splitlines()[-1] or "nllb-prune-nllb-moe" in done.stderr


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_checkpoint_that_was_tampered_with_is_refused(change, exported, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(exported([DIRECTIONS[0]]), tmp_path / "copy")
    tensors = weights(folder)
    name = next(name for name in tensors if ".experts." in name and name.endswith("fc1.weight"))
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["model.extra"] = torch.zeros(2)
    else:
        tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"must hold|must have the shape"):
        load_model(folder)
    with pytest.raises(UsageError, match=r"must hold|must have the shape"):
        AutoModelForSeq2SeqLM.from_pretrained(folder)


def test_masks_of_another_model_are_refused(make_masks, tmp_path):
    from nllb_prune.model.spec import Fingerprint

    spec = load_spec("mini")
    norms = [norm * 1.1 for norm in spec.fingerprint.router_norms]
    foreign = make_masks(spec, name="other")
    object.__setattr__(foreign, "fingerprint", Fingerprint.of(spec.stacks, norms))
    with pytest.raises(UsageError, match=r"must belong to the model, but are of other .* is another's"):
        export("mini", tmp_path / "out", masks=foreign, directions=[DIRECTIONS[0]])
    assert not (tmp_path / "out").exists()


def test_saving_leaves_the_tokenizer_and_removes_old_weights(exported, tokenizer, tmp_path):
    folder = shutil.copytree(exported([DIRECTIONS[0]]), tmp_path / "saved")
    model = load_model(folder)
    for size in ("1MB", "5GB"):
        model.save_pretrained(folder, max_shard_size=size)
    assert {path.name for path in folder.glob("*.safetensors*")} == {"model.safetensors"}
    assert (folder / "tokenizer.json").exists()
    assert not list(folder.glob(".saving*"))
    again = load_model(folder)
    assert torch.equal(logits(again, tokenizer, DIRECTIONS[0]), logits(model, tokenizer, DIRECTIONS[0]))


def test_parts_are_exported_again(exported, masks, mini, tokenizer, tmp_path):
    direction = ("eng_Latn", "hin_Deva")
    export(exported(ONE_TO_MANY, parts=True), tmp_path / "one", masks=masks, directions=[direction])
    assert weights(tmp_path / "one").keys() == weights(exported([direction])).keys()
    assert beam(load_model(tmp_path / "one"), tokenizer, direction) == beam(mini, tokenizer, direction, masks)


@pytest.mark.parametrize("experts", ["int8", "int4"])
def test_experts_of_few_bits_are_not_exported_again(experts, exported, masks, tmp_path):
    with pytest.raises(UsageError, match=f"must be floats to be exported, but are in {experts}; export them from mini"):
        export(exported([DIRECTIONS[0]], experts=experts), tmp_path / "one", masks=masks, directions=[DIRECTIONS[0]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parts", [False, True])
def test_what_is_saved_of_one_direction_is_that_direction(parts, exported, masks, tokenizer, tmp_path):
    direction = ("eng_Latn", "spa_Latn")
    model = load_model(exported(ONE_TO_MANY, parts=parts), direction=direction)
    with pytest.warns(UserWarning, match="not those for eng_Latn-deu_Latn"):
        translations(model, tokenizer, ["hello"], source="eng_Latn", target="deu_Latn")
    model.save_pretrained(tmp_path / "saved")
    for again in (load_model(tmp_path / "saved"), load_model(tmp_path / "saved", direction=direction)):
        assert routing_of(again).resident == masks.direction(*direction)
        assert torch.equal(logits(again, tokenizer, direction), logits(model, tokenizer, direction))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["expert_pruning"]["targets"] == ["spa_Latn"]
    with pytest.raises(UsageError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True)


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_dtypes_have_names(name, exported):
    for model in (load_model(exported([DIRECTIONS[0]]), dtype=name), load_model("mini", dtype=name)):
        assert next(model.parameters()).dtype == torch.bfloat16
    if name != "torch.bfloat16":  # which transformers does not take
        again = AutoModelForSeq2SeqLM.from_pretrained(exported([DIRECTIONS[0]]), dtype=name)
        assert next(again.parameters()).dtype == torch.bfloat16
    with pytest.raises(UsageError, match="must be auto or like float32"):
        load_model("mini", dtype="int8")


@pytest.mark.parametrize("option", [{"attn_implementation": "sdpa"}, {"quantization_config": object()}], ids=" ".join)
def test_what_would_be_ignored_is_refused(option, exported):
    with pytest.raises(UsageError, match=f"given {next(iter(option))} too"):
        AutoModelForSeq2SeqLM.from_pretrained(exported([DIRECTIONS[0]]), **option)


@pytest.mark.parametrize("change", ["fewer layers", "an id too large", "not sorted", "too few"])
def test_experts_that_cannot_be_are_refused(change, exported, tmp_path):
    folder = shutil.copytree(exported([DIRECTIONS[0]]), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    kept = config["expert_pruning"]["kept"]["decoder"]
    if change == "fewer layers":
        kept.pop()
    else:
        kept[1] = {"an id too large": [*kept[1], 999], "not sorted": kept[1][::-1], "too few": kept[1][:1]}[change]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"`expert_pruning/kept` of the configuration must be"):
        load_model(folder)


def test_an_expert_that_was_left_out_must_not_be_there(exported, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(exported([DIRECTIONS[0]]), tmp_path / "copy")
    tensors, full = weights(folder), weights(model_folder("mini"))
    extra = next(name for name in full if ".experts." in name and name not in tensors)
    save_file({**tensors, extra: full[extra]}, folder / "model.safetensors")
    with pytest.raises(UsageError, match="must hold only tensors of"):
        load_model(folder)


def test_the_manifest_says_nothing_of_when_sources_were_written(masks, tmp_path):
    base = shutil.copytree(model_folder("mini"), tmp_path / "mini")
    export(base, tmp_path / "one", masks=masks, directions=[DIRECTIONS[0]])
    (base / "model.safetensors").touch()
    export(base, tmp_path / "two", masks=masks, directions=[DIRECTIONS[0]])
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()
