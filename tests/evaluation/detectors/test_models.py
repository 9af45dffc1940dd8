"""Detectors that need a large model: what is said without one, and LaBSE's with a tiny model that is made here."""

import importlib.util
import math
import re
import sys

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import Outputs
from nllb_prune.evaluation.detectors import models as models_module
from nllb_prune.evaluation.detectors.models import MODELS, model_detector

OUTPUTS = Outputs(
    source="eng_Latn", target="deu_Latn", sources=["play music", "stop"], outputs=["play music", "music play music"]
)


def save_tiny_encoder(folder):
    """A sentence encoder of random weights, saved by sentence-transformers: BERT, mean over positions, normalised."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    bert, words = folder / "bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "music", "stop"]
    bert.mkdir(parents=True)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), initializer_range=1.0, **sizes)).save_pretrained(bert)
    (bert / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(tokenizer_object=BertWordPieceTokenizer(str(bert / "vocab.txt"))).save_pretrained(bert)
    parts = [models.Transformer(str(bert)), models.Pooling(8, pooling_mode="mean"), models.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "labse"))
    return folder / "labse"


def test_labse(tmp_path):
    """Distances are 1 - cosine where the package is installed; where it is not, a line says how to install it."""
    if importlib.util.find_spec("sentence_transformers") is None:
        with pytest.raises(
            UsageError, match=r"sentence_transformers, but it is not installed; `pip install nllb-prune"
        ):
            model_detector("labse", tmp_path)
        return
    from sentence_transformers import SentenceTransformer

    folder = save_tiny_encoder(tmp_path)
    detector = model_detector("labse", folder, threshold=0.5)
    source, output = (
        SentenceTransformer(str(folder)).encode(list(each)) for each in (OUTPUTS.sources, OUTPUTS.outputs)
    )
    cosines = (source * output).sum(axis=1) / (np.linalg.norm(source, axis=1) * np.linalg.norm(output, axis=1))
    values = detector.values(OUTPUTS)
    assert values == pytest.approx(1 - cosines, abs=1e-5)
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[1] > 1e-3
    assert re.match(r"labse\|model:labse-[0-9a-f]{8}\|sentence-transformers:", detector.signature)
    assert "|t:0.5|" in detector.signature


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_fetched_for_a_folder_that_is_not_there(name, tmp_path):
    with pytest.raises(UsageError, match=f"none` must be a folder with the model of `{name}`, .* none is fetched"):
        model_detector(name, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "module", "advice"),
    [("labse", "sentence_transformers", r"nllb-prune\[labse\]"), ("comet", "comet", "`score_comet`")],
)
def test_a_package_that_is_not_installed(name, module, advice, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"`{name}` needs the package {module}, but it is not installed; .*{advice}"):
        model_detector(name, tmp_path)


def test_unknown_model(tmp_path):
    with pytest.raises(UsageError, match="`name` must be one of labse, comet, but is 'bleurt' instead"):
        model_detector("bleurt", tmp_path)


class EstimateByLength:
    """Loads as COMET does, and gives as quality how much longer the source is."""

    def __init__(self):
        self.asked = None

    def load_from_checkpoint(self, path, *, local_files_only):
        assert local_files_only
        self.asked = path
        return self

    def predict(self, pairs, *, batch_size, gpus, progress_bar):
        assert (gpus, progress_bar) == (0, False)
        scores = [float(len(pair["src"]) - len(pair["mt"])) for pair in pairs]
        return type("Prediction", (), {"scores": scores})


def test_comet_is_asked_for_its_local_checkpoint_and_turned_round(tmp_path, monkeypatch):
    package = EstimateByLength()
    monkeypatch.setitem(sys.modules, "comet", package)
    with pytest.raises(UsageError, match=r"must have checkpoints/model.ckpt"):
        model_detector("comet", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model.ckpt").touch()
    detector = model_detector("comet", tmp_path)
    assert package.asked == str(tmp_path / "checkpoints" / "model.ckpt")
    assert math.isinf(detector.threshold)
    np.testing.assert_array_equal(detector.values(OUTPUTS), [0, 12])


def estimator(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "comet", EstimateByLength())
    monkeypatch.setattr(models_module, "version", lambda package: "2.2")
    return model_detector("comet", folder, threshold=0.5)


def save_estimator(folder, *, weights=b"\0" * (1 << 16), sizes=b'{"layers": 24}'):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "model.ckpt").write_bytes(weights)
    (folder / "config.json").write_bytes(sizes)
    return folder


def test_the_signature_is_of_what_is_in_the_folder_and_not_of_where_it_is(tmp_path, monkeypatch):
    one = estimator(save_estimator(tmp_path / "a" / "cometkiwi"), monkeypatch).signature
    assert re.fullmatch(r"comet\|model:cometkiwi-[0-9a-f]{8}\|unbabel-comet:2\.2\|t:0\.5\|version:\S+", one), one
    assert estimator(save_estimator(tmp_path / "b" / "cometkiwi"), monkeypatch).signature == one


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").write_text('{"layers": 12}'),  # as many bytes
        lambda folder: (folder / "checkpoints" / "model.ckpt").write_bytes(b"\0" * (2 << 16)),
        lambda folder: (folder / "config.json").rename(folder / "configuration.json"),
        lambda folder: (folder / "vocabulary.txt").touch(),
    ],
    ids=["content", "size", "name", "another file"],
)
def test_another_model_in_a_folder_of_that_name_has_another_signature(change, tmp_path, monkeypatch):
    folder = save_estimator(tmp_path / "cometkiwi")
    before = estimator(folder, monkeypatch)
    signatures = before.signature, before.values_signature
    change(folder)
    after = estimator(folder, monkeypatch)
    assert after.signature != signatures[0]
    assert after.values_signature != signatures[1]


def test_a_folder_that_does_not_load(tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def SentenceTransformer(*arguments, **options):  # noqa: N802
            raise OSError("no modules.json")

    monkeypatch.setitem(sys.modules, "sentence_transformers", Broken)
    with pytest.raises(UsageError, match=r"must be a model that loads without network, but does not \(no modules"):
        model_detector("labse", tmp_path)
