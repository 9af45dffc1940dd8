"""Which pieces and merges texts need, on random byte-pair encodings, with the tokenizers library as the oracle."""

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nllb_prune.errors import UsageError
from nllb_prune.exporting.tokenisation import tokenisation_changes
from nllb_prune.exporting.used_pieces import always_kept, merge_pair, merging_steps, used_pieces
from nllb_prune.exporting.vocabulary import trimmed
from nllb_prune.model.source import model_folder

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


@st.composite
def encodings(draw):
    """A `tokenizer.json` whose merges join any two pieces, in any order, the same piece in several ways."""
    pieces = ["▁", "a", "b", "c"]
    joins = draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=25))
    merges = []
    for left, right in joins:
        merge = (pieces[left % len(pieces)], pieces[right % len(pieces)])
        if merge not in merges and len("".join(merge)) <= 8:
            merges.append(merge)
            pieces.append("".join(merge))
    merges = draw(st.permutations(merges))
    fallback = draw(st.booleans())
    vocabulary = list(dict.fromkeys([*SPECIAL, *(BYTES if fallback else []), *pieces]))
    words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": draw(st.booleans()),
        "byte_fallback": fallback,
        "ignore_merges": draw(st.booleans()),
        "vocab": {piece: number for number, piece in enumerate(vocabulary)},
        "merges": [" ".join(merge) for merge in merges] if draw(st.booleans()) else [list(merge) for merge in merges],
    }
    added = [*SPECIAL, "eng_Latn", "deu_Latn"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ids = {**model["vocab"], "eng_Latn": len(vocabulary), "deu_Latn": len(vocabulary) + 1}
    return {
        "version": "1.0",
        "added_tokens": [{"id": ids[token], "content": token, **flags, "special": True} for token in added],
        "normalizer": None,
        "pre_tokenizer": words if draw(st.booleans()) else None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


TEXTS = st.lists(st.text(alphabet="aaabbc é", max_size=25), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(content=encodings(), texts=TEXTS, others=TEXTS)
def test_texts_are_tokenised_as_before(content, texts, others, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoding")
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    texts = [*texts, "a"]
    rows = len(content["model"]["vocab"]) + 2
    vocabulary = trimmed(folder, texts, ["deu_Latn"], padded_rows=rows)
    before = Tokenizer.from_str(json.dumps(content))
    after = Tokenizer.from_str(vocabulary.files["tokenizer.json"].decode("utf-8"))
    for text in texts:
        ids = after.encode(text.strip(), add_special_tokens=False).ids
        assert [vocabulary.rows[each] for each in ids] == before.encode(text.strip(), add_special_tokens=False).ids
    change = tokenisation_changes(folder, vocabulary, {"deu_Latn": texts, "eng_Latn": others})
    assert change["deu_Latn"].changed == 0
    assert change["eng_Latn"].unknown_after == change["eng_Latn"].unknown_before


@settings(max_examples=150, deadline=None)
@given(content=encodings())
def test_steps_lead_to_the_library_s_tokens(content):
    model = {**content["model"], "ignore_merges": False}
    library = Tokenizer.from_str(json.dumps({**content, "model": model})).model
    ranks = {merge_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    for word in map("".join, product("abc", repeat=4)):
        tokens = [token.value for token in library.tokenize(word)]
        steps = merging_steps(word, ranks)
        assert {token for token in tokens if len(token) > 1} <= set(steps)
        assert set(steps) == {step for token in tokens for step in merging_steps(token, ranks)}
        assert set(steps) | set(word) >= used_pieces(model, tokens)


def test_every_piece_of_mini_can_be_built():
    content = json.loads((model_folder("mini") / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    pieces = [piece for piece in model["vocab"] if piece not in SPECIAL]
    assert len(pieces) == 5997
    assert used_pieces(model, pieces) == set(pieces)


@pytest.mark.parametrize(
    ("tokens", "used"),
    [([], set()), (["a"], {"a"}), (["abc"], {"ab", "abc"}), (["abc", "cc"], {"ab", "abc", "cc"})],
)
@pytest.mark.parametrize("as_string", [True, False])
def test_pieces_in_between_are_used(tokens, used, as_string):
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("c", "c")]
    model = {"merges": [" ".join(merge) if as_string else list(merge) for merge in merges]}
    assert used_pieces(model, tokens) == used


def test_a_piece_that_no_merge_builds():
    with pytest.raises(UsageError, match="must build its pieces from its merges, but `abc` cannot be built"):
        used_pieces({"merges": ["a b"]}, ["abc"])


@pytest.mark.parametrize(
    ("piece", "fallback", "kept"),
    [("a", False, True), ("字", False, True), ("ab", False, False), ("<0x0A>", True, True), ("<0x0A>", False, False)],
)
def test_characters_and_bytes_always_stay(piece, fallback, kept):
    assert always_kept({"byte_fallback": fallback}, piece) is kept
