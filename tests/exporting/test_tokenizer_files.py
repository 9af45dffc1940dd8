"""Ids and languages in the small files of a tokenizer, where tokens with a role move as well."""

import pytest

from nllb_prune.exporting.tokenizer_files import (
    Renumbering,
    to_bytes,
    trimmed_added_tokens,
    trimmed_config,
    trimmed_special_tokens,
    trimmed_tokenizer,
)
from nllb_prune.exporting.tokenizer_settings import moved_ids

TOKENS = {"a": 0, "b": 1, "</s>": 2, "deu_Latn": 3}
CHANGE = Renumbering(
    ids={0: 0, 2: 1, 5: 2, 7: 3}, tokens=TOKENS, languages=("deu_Latn",), removed=frozenset({"eng_Latn"})
)


def template(*tokens):
    return [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens] + [
        {"Sequence": {"id": "A", "type_id": 0}}
    ]


def special(**ids):
    return {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in ids.items()}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "BertProcessing", "sep": ["</s>", 5]}, {"type": "BertProcessing", "sep": ["</s>", 2]}),
        ({"cls": ["a", 0], "sep": ["b", 2], "trim": True}, {"cls": ["a", 0], "sep": ["b", 1], "trim": True}),
        (
            {"single": template("eng_Latn", "b"), "special_tokens": special(eng_Latn=6, b=2)},
            {"single": template("deu_Latn", "b"), "special_tokens": special(deu_Latn=3, b=1)},
        ),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"pair": template("eng_Latn")}]},
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"pair": template("deu_Latn")}]},
        ),
        (None, None),
    ],
)
def test_post_processor(old, new):
    content = {"added_tokens": [], "post_processor": old, "model": {"vocab": {}, "merges": []}}
    assert trimmed_tokenizer(content, CHANGE)["post_processor"] == new


@pytest.mark.parametrize("as_string", [True, False])
def test_pieces_and_merges(as_string):
    merges = [["a", "b"], ["b", "a"], ["a", "c"]]
    merges = [" ".join(merge) for merge in merges] if as_string else merges
    content = {"added_tokens": [], "model": {"vocab": {"a": 0, "ab": 2, "b": 5, "ba": 6, "c": 8}, "merges": merges}}
    change = Renumbering(ids=CHANGE.ids, tokens={"a": 0, "ab": 1, "b": 2}, languages=("deu_Latn",), removed=frozenset())
    model = trimmed_tokenizer(content, change)["model"]
    assert model == {"vocab": {"a": 0, "ab": 1, "b": 2}, "merges": merges[:1]}


@pytest.mark.parametrize(
    ("old", "roles", "new"),
    [
        ({}, {}, {"additional_special_tokens": ["deu_Latn"], "src_lang": "deu_Latn"}),
        (
            {"src_lang": "deu_Latn", "tgt_lang": "eng_Latn", "additional_special_tokens": ["<x>", "eng_Latn"]},
            {},
            {"src_lang": "deu_Latn", "tgt_lang": None, "additional_special_tokens": ["deu_Latn", "<x>"]},
        ),
        (
            {"src_lang": "deu_Latn", "extra_special_tokens": ["eng_Latn", "deu_Latn", {"content": "<x>"}]},
            {"additional_special_tokens": ["<y>"]},
            {"src_lang": "deu_Latn", "additional_special_tokens": ["deu_Latn", {"content": "<x>"}]},
        ),
        (
            {"src_lang": "deu_Latn", "extra_special_tokens": {}, "additional_special_tokens": None},
            {"additional_special_tokens": ["<y>", "eng_Latn"]},
            {"src_lang": "deu_Latn", "extra_special_tokens": {}, "additional_special_tokens": ["deu_Latn", "<y>"]},
        ),
        (
            {"src_lang": "deu_Latn", "added_tokens_decoder": {"7": "d", "5": "s", "6": "e"}},
            {},
            {
                "src_lang": "deu_Latn",
                "added_tokens_decoder": {"3": "d", "2": "s"},
                "additional_special_tokens": ["deu_Latn"],
            },
        ),
    ],
)
def test_configuration(old, roles, new):
    assert trimmed_config(old, roles, CHANGE) == new


def test_maps_of_tokens():
    roles = {"eos_token": "</s>", "additional_special_tokens": [{"content": "eng_Latn"}, "deu_Latn"]}
    expected = {"eos_token": "</s>", "additional_special_tokens": ["deu_Latn"]}
    assert trimmed_special_tokens(roles, CHANGE) == expected
    assert trimmed_added_tokens({"deu_Latn": 7, "eng_Latn": 6, "</s>": 5}, CHANGE) == {"deu_Latn": 3, "</s>": 2}


@pytest.mark.parametrize(
    ("settings", "moved"),
    [
        ({"eos_token_id": 5, "pad_token_id": 0, "vocab_size": 5}, {"eos_token_id": 2}),
        ({"eos_token_id": [5, 6, 0]}, {"eos_token_id": [2, 0]}),
        ({"forced_bos_token_id": 6}, {"forced_bos_token_id": None}),
        ({"pad_token_id": -1, "bos_token_id": None, "sep_token_id": "5", "eos_token": 5}, {}),
    ],
)
def test_ids_with_a_role(settings, moved):
    assert moved_ids(settings, CHANGE.ids) == moved


def test_bytes_are_readable_text_in_the_order_of_the_keys():
    assert to_bytes({"b": "ключ", "a": 1}) == '{\n  "b": "ключ",\n  "a": 1\n}\n'.encode()
