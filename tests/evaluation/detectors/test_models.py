"""Detectors that need a large model: what is said without one, and LaBSE's with a tiny model that is made here."""

import importlib.util
import math
import sys

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import Outputs
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
    assert detector.signature.startswith("labse|model:labse|sentence-transformers:")
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


def test_a_folder_that_does_not_load(tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def SentenceTransformer(*arguments, **options):  # noqa: N802
            raise OSError("no modules.json")

    monkeypatch.setitem(sys.modules, "sentence_transformers", Broken)
    with pytest.raises(UsageError, match=r"must be a model that loads without network, but does not \(no modules"):
        model_detector("labse", tmp_path)
