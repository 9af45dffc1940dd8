"""spBLEU against sacrebleu's own, whose cache gets the sentencepiece model of `mini`."""

import hashlib
import io
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import sacrebleu.utils
import sentencepiece
from sacrebleu.metrics import BLEU
from sacrebleu.tokenizers import tokenizer_spm

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import score, scores_from_json, scores_to_json
from nllb_prune.evaluation.scores.spbleu import cached_model, find_spbleu, spbleu_missing
from nllb_prune.model.source import embedded_text, model_folder

LANGUAGES = ["deu_Latn", "zho_Hans", "hin_Deva", "arb_Arab"]


@pytest.fixture(scope="module")
def model():
    return model_folder("mini") / "sentencepiece.bpe.model"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of sacrebleu, which must not download."""
    folder = tmp_path / "sacrebleu"
    for module in (sacrebleu.utils, tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(folder))
    monkeypatch.setattr(tokenizer_spm, "download_file", lambda *_: pytest.fail("sacrebleu downloads"))
    return folder


@pytest.fixture
def filled(cache, model):
    """The cache with a model where sacrebleu looks for that of flores200."""
    cached_model().parent.mkdir(parents=True)
    shutil.copy(model, cached_model())
    return cache


def texts(language):
    """References, and outputs with words dropped and repeated."""
    lines = ParallelText.open(embedded_text(), "test").head(30).lines(language)
    outputs = [line[: len(line) * (n % 4 + 1) // 4] + line[-(n % 3) :] * (n % 2) for n, line in enumerate(lines)]
    return ["", *outputs[1:]], list(lines)


@pytest.mark.parametrize("language", LANGUAGES)
def test_equals_sacrebleu_with_its_cached_model(filled, language):
    outputs, references = texts(language)
    oracle = BLEU(tokenize="flores200")
    expected = oracle.corpus_score(outputs, [references])
    found = score(outputs, references, target=language, spbleu=find_spbleu())["spbleu"]
    assert found.value == pytest.approx(expected.score, abs=1e-9)
    assert 0 < found.value < 100
    assert found.signature == str(oracle.get_signature())
    assert found.statistics.sum(0).tolist() == [
        expected.sys_len,
        expected.ref_len,
        *expected.counts,
        *expected.totals,
    ]


def test_equals_the_command_line_of_sacrebleu(filled, tmp_path):
    outputs, references = texts("hin_Deva")
    for name, lines in (("outputs", outputs), ("references", references)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "outputs", "-m", "bleu"]
    options = ["--tokenize", "flores200", "--score-only", "--width", "6"]
    environment = {**os.environ, "SACREBLEU": str(filled)}
    printed = subprocess.run(
        [*command, *options], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    found = score(outputs, references, target="hin_Deva", spbleu=find_spbleu())["spbleu"]
    assert found.value == pytest.approx(float(printed.stdout), abs=5e-7)


def test_without_a_model_there_is_no_spbleu_and_one_line_says_how(cache):
    assert find_spbleu() is None
    assert list(score(["a"], ["a"], target="deu_Latn", spbleu=find_spbleu())) == ["chrf", "bleu"]
    line = spbleu_missing()
    assert str(cached_model()) in line
    assert "--tokenize flores200" in line
    assert "\n" not in line


def test_a_given_file_is_named_by_its_content(filled, model):
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    given = find_spbleu(model)
    assert given.name == f"spm-{digest[:8]}"
    outputs, references = texts("deu_Latn")
    found = score(outputs, references, target="deu_Latn", spbleu=given)["spbleu"]
    own = score(outputs, references, target="deu_Latn", spbleu=find_spbleu())["spbleu"]
    assert f"|tok:spm-{digest[:8]}|" in found.signature
    assert found.value == own.value
    assert given.signature != find_spbleu().signature


def test_the_cached_file_may_be_given_by_its_path(filled):
    assert find_spbleu(cached_model()) == find_spbleu()
    assert find_spbleu().name == "flores200"


def test_space_at_the_end_does_not_count(cache):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts("deu_Latn")[1]),
        model_writer=content,
        vocab_size=80,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    cached_model().parent.mkdir(parents=True)
    cached_model().write_bytes(content.getvalue())
    outputs, references = ["guten Morgen  ", "ja "], ["guten Tag", "ja"]
    expected = BLEU(tokenize="flores200").corpus_score(outputs, [references]).score
    found = score(outputs, references, target="deu_Latn", spbleu=find_spbleu())["spbleu"]
    assert found.value == pytest.approx(expected)
    assert find_spbleu().pieces(["ja "]) == find_spbleu().pieces(["ja"])


def test_it_travels_to_other_processes(filled):
    found = pickle.loads(pickle.dumps(find_spbleu()))
    assert found.pieces(["guten Morgen "]) == find_spbleu().pieces(["guten Morgen"]) != ["guten Morgen"]


def test_scores_round_trip_with_spbleu(filled):
    outputs, references = texts("deu_Latn")
    scores = score(outputs, references, target="deu_Latn", spbleu=find_spbleu())
    again = scores_from_json(scores_to_json(scores))
    assert list(again) == ["chrf", "bleu", "spbleu"]
    assert (again["spbleu"].statistics == scores["spbleu"].statistics).all()


def test_a_file_that_is_no_model_is_refused(cache, tmp_path):
    with pytest.raises(UsageError, match="must be a sentencepiece model, but there is no such file"):
        find_spbleu(tmp_path / "nowhere")
    (tmp_path / "text").write_text("words")
    with pytest.raises(UsageError, match="must be a sentencepiece model, but cannot be read"):
        find_spbleu(tmp_path / "text")
