"""`nllb-prune masks` on files alone, on an index in the published form, and on whatever is wrong."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import NllbMoeConfig

from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.planning.similarity import jaccard

STACKS = (Stack("encoder", "source", (1, 3), 8), Stack("decoder", "target", (1,), 16))
LANGUAGES = ("eng_Latn", "deu_Latn", "tur_Latn")


def mask_set(keys=LANGUAGES, *, granularity="language", seed=0, norm=1.0, stacks=STACKS, kept=4):
    random = np.random.default_rng(seed)
    masks = {
        stack.name: {
            key: tuple(tuple(sorted(random.choice(stack.experts, kept, replace=False).tolist())) for _ in stack.layers)
            for key in keys
        }
        for stack in stacks
    }
    fingerprint = Fingerprint.of(stacks, [norm] * 32)
    return MaskSet(
        model_name=f"model-{norm}", fingerprint=fingerprint, stacks=stacks, granularity=granularity, masks=masks
    )


@pytest.fixture
def path(tmp_path):
    mask_set().save(tmp_path / "masks.json")
    return tmp_path / "masks.json"


@pytest.fixture
def save(tmp_path):
    def call(masks, name):
        masks.save(tmp_path / name)
        return tmp_path / name

    return call


# show


def test_show(works, path):
    lines = works("masks", "show", path).splitlines()
    assert lines[0] == f"{path}: masks of model-1.0, by language"
    encoder = next(line.split() for line in lines if line.startswith("encoder") and "of" in line.split())
    masks = mask_set()
    by_key = masks.masks["encoder"]
    pairs = {(a, b): jaccard(by_key[a], by_key[b]) for a in by_key for b in by_key if a < b}
    low, high = min(pairs, key=pairs.get), max(pairs, key=pairs.get)
    size = sum(map(len, masks.union([(code, "eng_Latn") for code in LANGUAGES])["encoder"]))
    means = [f"{value:.3f}" for value in (sum(pairs.values()) / 3, pairs[low], pairs[high])]
    assert encoder == ["encoder", str(size), "of", "16", *means, *low, *high]
    assert lines[-1].startswith("union ")
    assert lines[-1].endswith(" of 32")


def test_show_matrix(works, path):
    table = works("masks", "show", path, "--matrix").split("\n\n")[2].splitlines()
    assert [row.split()[0] for row in table[2:5]] == sorted(LANGUAGES)
    assert [row.split()[1 + n] for n, row in enumerate(table[2:5])] == ["1.000"] * 3
    content = json.loads(works("masks", "show", path, "--matrix", "--json"))
    matrix = np.array(content["stacks"][0]["jaccard"]["matrix"])
    np.testing.assert_array_equal(matrix, matrix.T)


def test_show_json(works, path):
    content = json.loads(works("masks", "show", path, "--json"))
    masks = mask_set()
    assert content["signature"] == masks.signature
    assert content["kept_fraction"] == masks.mean_kept_fraction()
    encoder = content["stacks"][0]
    assert encoder["kept"] == {code: [4, 4] for code in LANGUAGES}
    assert encoder["jaccard"]["most_similar"][2] >= encoder["jaccard"]["mean"] >= encoder["jaccard"]["least_similar"][2]
    assert "matrix" not in encoder["jaccard"]


def test_show_direction(works, path):
    kept = mask_set().direction("eng_Latn", "deu_Latn")
    lines = works("masks", "show", path, "--direction", "en-de").splitlines()
    assert lines[0] == "eng_Latn-deu_Latn: 12 of 32 experts"
    assert lines[2] == f"encoder layer 3, 4 of 8: {' '.join(map(str, kept['encoder'][1]))}"
    assert len(lines) == 4
    content = json.loads(works("masks", "show", path, "--direction", "en-de", "--json"))
    assert content["kept"] == 12
    assert content["masks"] == {name: [list(layer) for layer in mask] for name, mask in kept.items()}


def test_show_swap(works, path):
    change = mask_set().difference(("eng_Latn", "deu_Latn"), ("tur_Latn", "deu_Latn"))
    lines = works("masks", "show", path, "--swap", "en-de", "tr-de").splitlines()
    assert lines[0] == "from eng_Latn-deu_Latn to tur_Latn-deu_Latn"
    first = change["encoder"][0]
    assert lines[3].split()[3:] == [str(len(ids)) for ids in (first.incoming, first.outgoing, first.staying)]
    assert lines[5].split() == ["decoder", "layer", "1", "0", "0", "4"]
    moved = sum(len(layer.incoming) for layer in change["encoder"])
    assert lines[6].split() == ["all", str(moved), str(moved), str(12 - moved)]
    content = json.loads(works("masks", "show", path, "--swap", "en-de", "tr-de", "--json"))
    assert content["changes"]["encoder"][0] == {
        "incoming": list(first.incoming),
        "outgoing": list(first.outgoing),
        "staying": list(first.staying),
    }


@pytest.mark.parametrize("name", ["plot.png", "folder/plot.svg"])
def test_show_plot(works, path, tmp_path, name):
    assert f"drawn in {tmp_path / name}" in works("masks", "show", path, "--plot", tmp_path / name)
    assert (tmp_path / name).stat().st_size > 5000
    json.loads(works("masks", "show", path, "--plot", tmp_path / name, "--json"))


def test_show_masks_of_one_key_of_none_and_of_pairs(works, save):
    everywhere = save(mask_set(["*"], granularity="global"), "global.json")
    assert "union 12 of 32" in works("masks", "show", everywhere)
    assert "12 of 32" in works("masks", "show", everywhere, "--direction", "en-fr")
    nothing = save(mask_set([]), "nothing.json")
    out = works("masks", "show", nothing)
    assert "union 0 of 32" in out
    assert json.loads(works("masks", "show", nothing, "--json"))["stacks"][0]["jaccard"] is None
    pairs = save(mask_set(["eng_Latn-deu_Latn", "deu_Latn-eng_Latn"], granularity="pair"), "pairs.json")
    assert "by pair" in works("masks", "show", pairs, "--matrix")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--direction", "eng_Latn-fra_Latn"], "must use the languages deu_Latn, eng_Latn, tur_Latn"),
        (["--direction", "*-eng_Latn"], "must be one direction such as eng_Latn-deu_Latn, but is 2"),
        (["--direction", "eng_Latn"], "SOURCE-TARGET"),
        (["--swap", "en-de", "en"], "SOURCE-TARGET"),
        (["--plot", "plot.jpg"], "must end in .png or .svg"),
        (["--plot", "."], "must end in .png or .svg"),
        (["--plot", "folder.png"], "is a folder"),
    ],
    ids=" ".join,
)
def test_show_what_is_not_there(fails, path, tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert expected in fails("masks", "show", path, *options)


def test_show_of_two_things_at_once(cli, path):
    assert cli("masks", "show", path, "--direction", "en-de", "--swap", "en-de", "de-en")[0] == 2


# compare


def test_compare(works, path, save, tmp_path):
    other = save(mask_set(("eng_Latn", "deu_Latn", "fra_Latn"), seed=1, kept=5), "other.json")
    out = works("masks", "compare", path, other, "--plot", tmp_path / "plot.png")
    lines = out.splitlines()
    first = mask_set().masks["encoder"]["deu_Latn"]
    second = MaskSet.load(other).masks["encoder"]["deu_Latn"]
    shared = sum(len(set(a) & set(b)) for a, b in zip(first, second, strict=True))
    similarity = jaccard(first, second)
    assert lines[2].split() == [
        "encoder", "deu_Latn", f"{similarity:.3f}", str(shared), str(8 - shared), str(10 - shared)
    ]  # fmt: skip
    assert f"only in {path}: encoder tur_Latn" in lines
    assert f"only in {other}: decoder fra_Latn" in lines
    assert lines[-1] == f"drawn in {tmp_path / 'plot.png'}"
    assert "different models" not in out
    content = json.loads(works("masks", "compare", path, other, "--json"))
    encoder = content["stacks"][0]
    assert encoder["masks"][0] == {
        "key": "deu_Latn",
        "jaccard": similarity,
        "shared": shared,
        "only_ours": 8 - shared,
        "only_theirs": 10 - shared,
    }
    assert encoder["mean"] == pytest.approx(sum(each["jaccard"] for each in encoder["masks"]) / 2)
    assert (encoder["only_ours"], encoder["only_theirs"]) == (["tur_Latn"], ["fra_Latn"])


def test_compare_with_another_model_or_another_granularity(works, fails, path, save):
    assert "different models" in works("masks", "compare", path, save(mask_set(norm=2.0), "other.json"))
    everywhere = save(mask_set(["*"], granularity="global"), "global.json")
    assert "(by global) must have masks for the languages or directions" in fails("masks", "compare", path, everywhere)


# union


def test_union(works, path, save, tmp_path):
    output = tmp_path / "union.json"
    assert "the union over 2 directions" in works(
        "masks", "union", path, "--directions", "en-de,tr-de", "--output", output
    )
    masks, united = mask_set(), MaskSet.load(output)
    assert united.granularity == "global"
    assert united.direction("any", "thing") == masks.union([("eng_Latn", "deu_Latn"), ("tur_Latn", "deu_Latn")])
    pairs = save(mask_set(["eng_Latn-fra_Latn"], granularity="pair", seed=1), "pairs.json")
    assert "the union over 7 directions" in works("masks", "union", path, pairs, "--output", output)
    everywhere = save(mask_set(["*"], granularity="global"), "global.json")
    works("masks", "union", everywhere, "--output", output)
    assert MaskSet.load(output).masks == MaskSet.load(everywhere).masks


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        ("en-fr", "must use the languages"),
        ("*-tr,tr-tr", "must join two different languages"),
        (",", "at least one direction"),
    ],
)
def test_union_of_what_is_not_there(fails, path, tmp_path, directions, expected):
    output = tmp_path / "union.json"
    assert expected in fails("masks", "union", path, "--directions", directions, "--output", output)
    assert not output.exists()


def test_union_needs_masks_of_one_model_for_every_direction(fails, path, save, tmp_path):
    output = tmp_path / "union.json"
    other = save(mask_set(norm=2.0), "other.json")
    line = fails("masks", "union", path, other, "--output", output)
    assert f"`{other}` must be masks of the model model-1.0 (fingerprint" in line
    assert "but is of model-2.0" in line
    pairs = save(mask_set(["eng_Latn-deu_Latn"], granularity="pair"), "pairs.json")
    assert "deu_Latn-eng_Latn has none" in fails("masks", "union", pairs, "--directions", "de-en", "--output", output)
    assert "one direction or more" in fails("masks", "union", pairs, "--directions", "*-en", "--output", output)
    assert not output.exists()


# the published index


@pytest.fixture(scope="module")
def nllb_moe(tmp_path_factory, nllb_moe_stacks):
    """A folder of the shape of NLLB-MoE, with nothing but the routers in it."""
    folder = tmp_path_factory.mktemp("nllb-moe")
    sizes = {"d_model": 4, "vocab_size": 9, "num_experts": 128}
    for stack in ("encoder", "decoder"):
        sizes |= {
            f"{stack}_layers": 24,
            f"{stack}_sparse_step": 4,
            f"{stack}_ffn_dim": 4,
            f"{stack}_attention_heads": 1,
        }
    NllbMoeConfig(**sizes).save_pretrained(folder)
    random = np.random.default_rng(0)
    names = [
        f"model.{stack.name}.layers.{layer}.ffn.router.classifier.weight"
        for stack in nllb_moe_stacks
        for layer in stack.layers
    ]
    save_file({name: random.normal(size=(128, 4)).astype(np.float32) for name in names}, folder / "model.safetensors")
    return folder


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def round_trip(works, model, index, folder):
    works("masks", "import", write(folder / "index.json", index), "--model", model, "--output", folder / "masks.json")
    works("masks", "export", folder / "masks.json", "--output", folder / "back.json")
    return json.loads((folder / "back.json").read_text())


def test_an_index_in_the_published_form(works, nllb_moe, published_index, tmp_path):
    assert round_trip(works, nllb_moe, published_index, tmp_path) == published_index
    out = works("masks", "show", tmp_path / "masks.json", "--matrix")
    assert "encoder    202  36, 36, 36, 36, 36, 36  128" in out
    assert "decoder    202  12, 12, 12, 12, 12, 12  128" in out
    assert "81.25% of the experts pruned" in out
    assert [len(table.splitlines()) for table in out.split("\n\n")[2:]] == [2 + 202] * 2
    union = len({number for numbers in published_index.values() for number in numbers})
    assert f"union {union:,} of 1,536" in out


def test_an_index_by_direction_and_a_global_one(works, nllb_moe, published_index, tmp_path):
    numbers = published_index["eng_Latn"]
    pairs = {"eng_Latn-deu_Latn": numbers, "deu_Latn-tur_Latn": published_index["tur_Latn"]}
    assert round_trip(works, nllb_moe, pairs, tmp_path) == pairs
    assert round_trip(works, nllb_moe, numbers, tmp_path) == numbers


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"eng_Latn": [0, 1, 1536]}, "`eng_Latn` must be a list of expert numbers 0 to 1535, but has 1536 instead"),
        ({"eng_Latn": [0, 1, -1]}, "but has -1 instead. Was the index made for another model?"),
        ({"eng_Latn": ["0", "1"]}, "but has '0' instead"),
        ({"eng_Latn": [0, 1, 0]}, "must list each expert once"),
        ({"eng_Latn": []}, "but is empty"),
        ({"eng_Latn": [0, 1, 64, 65]}, "must keep 2 or more experts a layer, but layer 1 keeps 0"),
        ({"eng_Latn": [0, 1], "eng_Latn-deu_Latn": [0, 1]}, "mixes both"),
        ({"eng_Latn-": [0, 1]}, "`direction` must be like"),
        ({}, "must be lists of expert numbers"),
        ([], "but is empty"),
        (3, "must be lists of expert numbers"),
        ('{"eng_Latn": [0, 1', "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
    ids=str,
)
def test_wrong_indexes(fails, nllb_moe, tmp_path, content, expected):
    index, output = write(tmp_path / "index.json", content), tmp_path / "masks.json"
    assert expected in fails("masks", "import", index, "--model", nllb_moe, "--output", output)
    assert not output.exists()


def test_an_index_of_another_model(fails, published_index, tmp_path):
    index = write(tmp_path / "index.json", published_index)
    line = fails("masks", "import", index, "--model", "mini", "--output", tmp_path / "masks.json")
    assert "0 to 383, but has" in line
    assert "Was the index made for another model?" in line
