from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from nllb_prune.corpus import ParallelText
from nllb_prune.model.loading import load_model

TINY = Path(__file__).parent.parent / "reference" / "tiny"


class WordTokenizer:
    """Words are `w4` to `w91`, languages the ids after them: what a vocabulary of 96 has room for."""

    bos_token_id, pad_token_id, eos_token_id, unk_token_id = range(4)
    languages = {"fra_Latn": 93, "eng_Latn": 94, "deu_Latn": 95}  # noqa: RUF012
    all_special_tokens = ("<s>", "<pad>", "</s>", "<unk>", *languages)

    def convert_tokens_to_ids(self, token):
        return self.languages.get(token, self.unk_token_id)

    def __call__(self, texts, **_):
        return SimpleNamespace(input_ids=[[int(word[1:]) for word in text.split()] for text in texts])


@pytest.fixture(scope="session")
def tokenizer():
    return WordTokenizer()


@pytest.fixture(scope="session")
def tiny():
    return load_model(TINY)


def _lines(seed, sentences):
    random = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in random.integers(4, 92, random.integers(1, 12))) for _ in range(sentences)]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Twelve sentences of one to eleven words in three languages; the third has no word in German."""
    folder = tmp_path_factory.mktemp("text")
    for seed, code in enumerate(WordTokenizer.languages):
        lines = _lines(seed, 12)
        lines[2] = "" if code == "deu_Latn" else lines[2]
        (folder / f"{code}.txt").write_text("".join(f"{line}\n" for line in lines))
    return ParallelText.open(folder)


@pytest.fixture(scope="session")
def checkpoint():
    """The tensors of the tiny model by name, as they are on disk."""
    return load_file(TINY / "model.safetensors")
