import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from eval.mini.batches import END, IGNORED, PAD, collate, draw_directions
from eval.mini.card import curve
from eval.mini.cross_entropy import tied_cross_entropy
from eval.mini.export import configuration
from eval.mini.network import (
    MaskPool,
    Network,
    NetworkSettings,
    load_from_transformers,
    mutual_information,
    state_for_transformers,
)
from eval.mini.text import capitalised, final_marks, read_text
from eval.mini.train import learning_rate_share
from nllb_prune.model.loading import load_model

SPARSE = NetworkSettings(
    vocabulary=50,
    d_model=16,
    heads=2,
    ffn=24,
    experts=6,
    encoder_layers=4,
    decoder_layers=2,
    encoder_sparse_step=2,
    decoder_sparse_step=1,
)
DENSE = NetworkSettings(vocabulary=50, d_model=16, heads=2, ffn=24, encoder_layers=2, decoder_layers=2)


@pytest.mark.parametrize("settings", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_trained_network_is_the_exported_model(settings, tmp_path):
    torch.manual_seed(0)
    network = Network(settings).eval()
    state = {name: tensor.contiguous() for name, tensor in state_for_transformers(network).items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    configuration(settings).save_pretrained(tmp_path)
    batch = collate([[[44, 7, 9, 12, END], [45, 8, 5, END]], [[46, 7, END], [47, 20, 21, 22, 23, END]]])
    with torch.no_grad():
        states = network(batch.source, batch.decoder_input)
        ours = functional.linear(states, network.shared.weight)
        theirs = load_model(tmp_path)(
            input_ids=batch.source,
            attention_mask=batch.source.ne(PAD).long(),
            decoder_input_ids=batch.decoder_input,
            use_cache=False,
        ).logits
    valid = batch.decoder_input.ne(PAD)
    assert torch.allclose(ours[valid], theirs[valid], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_training_can_start_from_an_exported_model(settings):
    torch.manual_seed(5)
    exported, started = Network(settings), Network(settings)
    load_from_transformers(started, state_for_transformers(exported))
    for name, tensor in exported.state_dict().items():
        assert torch.equal(started.state_dict()[name], tensor), name


def test_masked_expert_outputs_keep_their_mean():
    torch.manual_seed(1)
    layer = Network(SPARSE).encoder.layers[1].ffn
    x = torch.randn(3, SPARSE.d_model)
    with torch.no_grad():
        languages = torch.zeros(3, dtype=torch.int64)
        trained = torch.stack([layer(x, languages) for _ in range(4000)]).mean(0)
        layer.eval()
        used = layer(x, languages)
    assert torch.allclose(trained, used, atol=0.05)


def test_information_of_expert_and_language():
    disjoint = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    shares = 2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)  # who speaks is known from the expert
    assert float(mutual_information(disjoint, torch.tensor([0, 0, 1]))) == pytest.approx(shares, rel=1e-5)
    for same in (disjoint[:2], torch.full((2, 4), 0.25)):
        assert float(mutual_information(same, torch.tensor([0, 1]))) == pytest.approx(0, abs=1e-6)
    assert float(mutual_information(disjoint, torch.zeros(3, dtype=torch.int64))) == pytest.approx(0, abs=1e-6)


def test_languages_are_those_of_the_tokens():
    seen = []
    network = Network(SPARSE).eval()
    for stack in (network.encoder, network.decoder):
        for layer in stack.layers:
            if layer.sparse:
                layer.ffn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1].tolist()))
    source = torch.tensor([[9, 5, 6, 2], [8, 5, 2, 1], [9, 2, 1, 1]])
    target = torch.tensor([[2, 7, 5], [2, 9, 1], [2, 7, 6]])
    network(source, target)
    assert seen[0] == [1, 1, 1, 1, 0, 0, 0, 1, 1]
    assert seen[-1] == [0, 0, 0, 1, 1, 0, 0, 0]


def test_balance_is_one_when_even():
    torch.manual_seed(2)
    network = Network(SPARSE)
    for stack in (network.encoder, network.decoder):
        for layer in stack.layers:
            if layer.sparse:
                torch.nn.init.zeros_(layer.ffn.router.weight)
    batch = collate([[[44, 7, END], [45, 8, END]]])
    network(batch.source, batch.decoder_input)
    assert network.balance().item() == pytest.approx(1.0)


def test_cross_entropy_and_its_gradients_equal_torchs():
    torch.manual_seed(3)
    states, weight = torch.randn(300, 16, requires_grad=True), (torch.randn(50, 16) * 0.3).requires_grad_()
    labels = torch.randint(50, (300,))
    ours = tied_cross_entropy(states, weight, labels, smoothing=0.1)
    ours.backward()
    gradients = [states.grad.clone(), weight.grad.clone()]
    states.grad = weight.grad = None
    theirs = functional.cross_entropy(states @ weight.T, labels, label_smoothing=0.1)
    theirs.backward()
    assert float(ours) == pytest.approx(float(theirs), rel=2e-3)
    for ours_gradient, theirs_gradient in zip(gradients, (states.grad, weight.grad), strict=True):
        assert float((ours_gradient - theirs_gradient).norm() / theirs_gradient.norm()) < 0.02  # bfloat16 products


def test_dropout_pool_keeps_the_mean_and_is_off_when_not_training():
    torch.manual_seed(4)
    pool = MaskPool(dropout=0.25, size=1 << 16)
    x = torch.ones(100, 100)
    dropped = pool(x)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(pool.eval()(x), x)


def test_directions_are_half_english_and_never_identical():
    languages = ("eng_Latn", "deu_Latn", "spa_Latn", "zho_Hans")
    pairs = draw_directions(np.random.default_rng(0), 20_000, languages, 0.5)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert (pairs == 0).any(axis=1).mean() == pytest.approx(0.5, abs=0.02)
    assert (pairs[:, 1] == 0).mean() == pytest.approx(0.25, abs=0.02)


def test_batch_forces_the_language_and_predicts_the_rest():
    batch = collate([[[44, 7, END], [45, 8, 9, END]]])
    assert batch.decoder_input.tolist() == [[END, 45, 8, 9]]
    assert batch.labels.tolist() == [[IGNORED, 8, 9, END]]


def test_text_leaves_out_what_leaks_in_any_language(tmp_path):
    rows = [("train", 1), ("train", 1), ("test", 1), ("test", 1), ("test", 0), ("dev", 1), ("dev", 1)]
    index = "id\tpartition\tscenario\tintent\tslots\tliteral\n"
    index += "".join(f"{n}\t{part}\ts\ti\t\t{literal}\n" for n, (part, literal) in enumerate(rows))
    (tmp_path / "index.tsv").write_text(index)
    (tmp_path / "eng_Latn.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    (tmp_path / "deu_Latn.txt").write_text("A\nB\nA\nD\nE\nD\nG\n")  # test line c is train line a in German; f is d
    text = read_text(tmp_path, ["eng_Latn", "deu_Latn"])
    assert text.lines["eng_Latn"] == {"train": ["a", "b"], "test": ["d"], "dev": ["g"]}


def test_punctuation_and_capitals_of_languages():
    assert final_marks("zho_Hans") == ("。", "?", "!")
    assert final_marks("hin_Deva")[0] == "।"
    assert final_marks("arb_Arab")[1] == "؟"
    assert capitalised("istanbul", "tur_Latn") == "İstanbul"
    assert capitalised("istanbul", "eng_Latn") == "Istanbul"


def test_learning_rate_rises_and_falls():
    settings = {"warmup_steps": 10, "steps": 110, "final_share": 0.1}
    shares = [learning_rate_share(step, settings) for step in range(110)]
    assert shares[9] == 1.0
    assert shares == sorted(shares[:10]) + sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=1e-3)


def test_the_embedded_recipe_is_the_embedded_model():
    import tomllib

    from eval.mini.tokenizer import RECIPE
    from nllb_prune.languages import language_set
    from nllb_prune.model.source import model_folder

    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    config = json.loads((model_folder("mini") / "config.json").read_text(encoding="utf-8"))
    assert (config["d_model"], config["num_experts"]) == (recipe["network"]["d_model"], recipe["network"]["experts"])
    assert sorted(recipe["languages"]) == sorted(each.code for each in language_set("mini").languages)


def test_curves_of_phases_are_one(tmp_path):
    """After a restart the later line of a step counts; the second phase goes on where the first ended."""
    phases = {"first": [(5, 50, 1), (10, 99, 2), (10, 100, 3)], "second": [(5, 40, 2)]}
    for name, rows in phases.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": s, "tokens": t, "seconds": x, "loss": 1.0}) for s, t, x in rows]
        (tmp_path / name / "curve.jsonl").write_text("\n".join(lines))
    read = curve([tmp_path / name for name in phases])
    assert [(row["step"], row["tokens"], row["seconds"]) for row in read] == [(5, 50, 1), (10, 100, 3), (15, 140, 5)]
