"""Freeze what transformers 4.57.6 makes of the first test sentences of `mini`; `README.md` lists the tensors."""

from __future__ import annotations

import argparse
import hashlib
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

TRANSFORMERS = "4.57.6"
MODEL = Path(__file__).parents[2] / "nllb_prune" / "assets" / "mini"
FILE = "mini-translations.safetensors"
SENTENCES = 10  # of each direction
NEW_TOKENS = 48
BEAMS = 4

Tensors = dict[str, Tensor]


def languages() -> list[str]:
    """Return the codes of the text that ships with the model, sorted."""
    return sorted(path.stem for path in (MODEL / "text" / "test").glob("*.test"))


def read_sources(tokenizer: Any) -> Tensor:
    """Return the tokens of the first sentences of each language ``(languages, SENTENCES, positions)``."""
    rows: list[list[int]] = []
    for code in languages():
        text = (MODEL / "text" / "test" / f"{code}.test").read_text(encoding="utf-8")
        tokenizer.src_lang = code
        rows += tokenizer(text.split("\n")[:SENTENCES]).input_ids
    width = max(map(len, rows))
    padded = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows]
    return torch.tensor(padded).unflatten(0, (-1, SENTENCES))


def translate(model: Any, tokenizer: Any, sources: Tensor, *, beams: int) -> tuple[Tensor, Tensor]:
    """Translate in all directions, a target language at a time.

    Returns:
        Tokens after the language token ``(directions, SENTENCES, NEW_TOKENS - 1)`` and, zeros when it is greedy,
        scores ``(directions, SENTENCES)``.
    """
    codes = languages()
    found: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
    for target in codes:
        others = [code for code in codes if code != target]
        ids = sources[[codes.index(code) for code in others]].flatten(0, 1)  # (languages, N, S) -> (rows, S)
        output = _generate(model, ids, tokenizer.convert_tokens_to_ids(target), beams)
        words = output.sequences[:, 2:]  # after the start token and the language token
        words = nn.functional.pad(words, (0, NEW_TOKENS - 1 - words.shape[1]), value=model.config.pad_token_id)
        scores = torch.zeros(len(ids)) if beams == 1 else output.sequences_scores
        for source, *both in zip(others, words.split(SENTENCES), scores.split(SENTENCES), strict=True):
            found[source, target] = both[0], both[1]
        print(f"{beams} beams into {target}", flush=True)
    ordered = [found[pair] for pair in permutations(codes, 2)]
    return torch.stack([tokens for tokens, _ in ordered]), torch.stack([scores for _, scores in ordered])


def _generate(model: Any, ids: Tensor, language: int, beams: int) -> Any:
    searched = {} if beams == 1 else {"length_penalty": 1.0, "early_stopping": False, "output_scores": True}
    return model.generate(
        input_ids=ids,
        attention_mask=ids.ne(model.config.pad_token_id).long(),
        forced_bos_token_id=language,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=beams,
        return_dict_in_generate=True,
        **searched,
    )


def translate_all(model: Any, tokenizer: Any) -> Tensors:
    """Return inputs and outputs under their names in the file."""
    sources = read_sources(tokenizer)
    greedy, _ = translate(model, tokenizer, sources, beams=1)
    beam, scores = translate(model, tokenizer, sources, beams=BEAMS)
    tables = {"sources": sources, "greedy": greedy, "beam": beam}
    assert max(int(table.max()) for table in tables.values()) <= torch.iinfo(torch.int16).max
    return {name: table.to(torch.int16) for name, table in tables.items()} | {"beam_scores": scores.float()}


def check(tensors: Tensors) -> None:
    """Refuse references that say little: translations that are dull or equal, scores that are no number."""
    assert tensors["beam_scores"].isfinite().all()
    assert not torch.equal(tensors["greedy"], tensors["beam"])
    distinct = {tuple(row) for row in tensors["greedy"].flatten(0, 1).tolist()}
    assert len(distinct) > 0.5 * tensors["greedy"].shape[:2].numel(), len(distinct)


def save(folder: Path, tensors: Tensors) -> None:
    """Write the file; its metadata says how it was made and of which weights."""
    made = {
        "format": "nllb-prune/translations",
        "version": 1,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "script": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16],
        "model": hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        "languages": languages(),
        "new_tokens": NEW_TOKENS,
        "beams": BEAMS,
    }
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    # one metadata key: safetensors does not keep the order of several
    save_file(contiguous, folder / FILE, {"nllb-prune": json.dumps(made, sort_keys=True)})


@torch.inference_mode()
def main() -> None:
    """Translate with the stock model and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: here)")
    out: Path = parser.parse_args().out
    if transformers.__version__ != TRANSFORMERS:
        raise SystemExit(
            f"`transformers` must be {TRANSFORMERS}, but is {transformers.__version__} instead; "
            f"run in an environment made with `pip install transformers=={TRANSFORMERS}`."
        )
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = AutoModelForSeq2SeqLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    tensors = translate_all(model, tokenizer)
    check(tensors)
    save(out, tensors)


if __name__ == "__main__":
    main()
