"""Train the sentencepiece model of `mini` and convert it to the tokenizer files of transformers.

The conversion runs on transformers 4.57.6: files saved by 5.x do not load on 4.57, the other way
round they do. `python -m eval.mini.tokenizer --text DIR --output DIR` needs `sentencepiece` and `protobuf`.
"""

from __future__ import annotations

import argparse
import io
import tomllib
from pathlib import Path

import sentencepiece

from .text import capitalised, final_marks, read_text

RECIPE = Path(__file__).with_name("recipe.toml")


def train_sentencepiece(sentences: list[str], *, vocabulary: int, character_coverage: float) -> bytes:
    """Train a BPE model with the piece order, normalisation and symbols that both transformers lines read."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        character_coverage=character_coverage,
        normalization_rule_name="nmt_nfkc_cf",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        shuffle_input_sentence=False,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Write `sentencepiece.bpe.model`, `tokenizer.json` and their settings into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    import transformers

    if not transformers.__version__.startswith("4.57."):
        raise SystemExit(f"transformers must be 4.57.x for the conversion, but is {transformers.__version__} instead.")
    recipe = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    text = read_text(options.text, recipe["languages"])
    sentences = []
    for code in recipe["languages"]:
        marks = final_marks(code)
        for n, line in enumerate(text.lines[code]["train"]):
            line = capitalised(line, code) if n % 5 == 0 else line
            sentences.append(line + (marks[n % 7] if n % 7 < len(marks) else ""))
    options.output.mkdir(parents=True, exist_ok=True)
    model_path = options.output / "sentencepiece.bpe.model"
    model_path.write_bytes(
        train_sentencepiece(
            sentences,
            vocabulary=recipe["tokenizer"]["vocabulary"],
            character_coverage=recipe["tokenizer"]["character_coverage"],
        )
    )
    slow = transformers.NllbTokenizer(str(model_path), additional_special_tokens=recipe["languages"])
    fast = transformers.NllbTokenizerFast(
        tokenizer_object=transformers.convert_slow_tokenizer.convert_slow_tokenizer(slow),
        additional_special_tokens=recipe["languages"],
        vocab_file=str(model_path),
    )
    fast.save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
