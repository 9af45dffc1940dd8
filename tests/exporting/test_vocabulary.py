"""Trimming the vocabulary of `mini` and of files in the forms of NLLB-200 and of transformers 5.x, on either line."""

import hashlib
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nllb_prune.errors import UsageError
from nllb_prune.exporting.tokenisation import tokenisation_changes
from nllb_prune.exporting.vocabulary import trimmed
from nllb_prune.languages import all_languages
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import load_tokenizer, model_folder
from nllb_prune.tokenization import encode, language_id

MINI = model_folder("mini")
ROWS = 6012
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def lines(split):
    return {file.stem: file.read_text(encoding="utf-8").splitlines() for file in (MINI / "text" / split).iterdir()}


DEV, TEST = lines("dev"), lines("test")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def written(vocabulary, folder, origin):
    """A folder as the export leaves it: new files, the changed configuration, nothing of the old vocabulary."""
    folder.mkdir()
    for file in origin.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in vocabulary.left_out:
            shutil.copy(file, folder)
    for name, content in vocabulary.files.items():
        (folder / name).write_bytes(content)
    config = {**read(origin / "config.json"), **vocabulary.config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def full():
    return load_tokenizer("mini")


@pytest.fixture(scope="module")
def two():
    return trimmed(MINI, DEV["spa_Latn"] + DEV["deu_Latn"], ["de", "spa_Latn"], padded_rows=ROWS)


@pytest.fixture(scope="module")
def folder(two, tmp_path_factory):
    return written(two, tmp_path_factory.mktemp("trimmed") / "model", MINI)


@pytest.fixture(scope="module")
def small(folder):
    return load_tokenizer(folder)


def test_counts_and_languages(two, small):
    assert two.rows_before == ROWS
    assert 2000 < len(two.rows) < 4000
    assert two.config == {"vocab_size": len(two.rows)} == {"vocab_size": len(small)}
    assert two.languages == ("spa_Latn", "deu_Latn")  # in the order of their ids, not of the request
    assert list(two.rows) == sorted(set(two.rows))
    assert two.left_out == ("sentencepiece.bpe.model",)


def test_ids_with_a_role_stay_where_the_configuration_says(two, full, small):
    assert two.rows[:4] == (0, 1, 2, 3)
    for role in ("bos", "pad", "eos", "unk"):
        assert getattr(small, f"{role}_token_id") == getattr(full, f"{role}_token_id")
    for token in (*SPECIAL, "deu_Latn", "spa_Latn"):
        assert two.rows[small.convert_tokens_to_ids(token)] == full.convert_tokens_to_ids(token)


def test_every_token_is_the_one_of_its_row(two, full, small):
    assert full.convert_ids_to_tokens(list(two.rows)) == small.convert_ids_to_tokens(list(range(len(two.rows))))


@pytest.mark.parametrize("codes", [["deu_Latn", "spa_Latn"], ["zho_Hans"], ["arb_Arab", "hin_Deva"], sorted(DEV)])
def test_kept_texts_are_tokenised_as_before(codes, full, tmp_path):
    vocabulary = trimmed(MINI, (line for code in codes for line in DEV[code]), codes, padded_rows=ROWS)
    tokenizer = load_tokenizer(written(vocabulary, tmp_path / "model", MINI))
    for code in codes:
        after = [[vocabulary.rows[each] for each in ids] for ids in encode(tokenizer, DEV[code], code)]
        assert after == encode(full, DEV[code], code)


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_part_of_the_text_is_tokenised_as_before(data):
    code = data.draw(st.sampled_from(sorted(DEV)))
    corpus = data.draw(st.lists(st.sampled_from(DEV[code] + TEST[code]), min_size=1, max_size=20))
    vocabulary = trimmed(MINI, corpus, [code], padded_rows=ROWS)
    assert tokenisation_changes(MINI, vocabulary, {code: corpus})[code].changed == 0


@pytest.mark.parametrize("code", sorted(TEST))
def test_other_texts_can_be_read_back(code, full, small, two):
    """Whatever the language: characters stay, so what was known is, and the text is the one decoded before."""
    for text in TEST[code][:200]:
        ids = [small(text, add_special_tokens=False).input_ids, full(text, add_special_tokens=False).input_ids]
        assert small.decode(ids[0]) == full.decode(ids[1])
    change = tokenisation_changes(MINI, two, {code: TEST[code]})[code]
    assert change.unknown_after == change.unknown_before
    assert change.tokens_after >= change.tokens_before
    assert (change.changed > 0.5 * change.sentences) == (code not in two.languages)


def test_report_counts_as_the_tokenizers_do(full, small, two):
    change = tokenisation_changes(MINI, two, {"eng_Latn": TEST["eng_Latn"], "zho_Hans": TEST["zho_Hans"]})
    for code, each in change.items():
        rows = [[ids[1:-1] for ids in encode(t, TEST[code], c)] for t, c in ((full, code), (small, "deu_Latn"))]
        back = [[two.rows[each] for each in ids] for ids in rows[1]]
        assert each.sentences == len(TEST[code])
        assert each.changed == sum(a != b for a, b in zip(rows[0], back, strict=True))
        assert (each.tokens_before, each.tokens_after) == tuple(sum(map(len, ids)) for ids in rows)
        unknown = [sum(ids.count(3) for ids in side) for side in rows]
        assert each.unknown_share == (unknown[0] / each.tokens_before, unknown[1] / each.tokens_after)
        assert each.tokens_per_sentence == (each.tokens_before / each.sentences, each.tokens_after / each.sentences)
    assert change["zho_Hans"].unknown_after > 0


def test_language_that_is_gone(small):
    with pytest.raises(UsageError, match="must be one of the model's, spa_Latn, deu_Latn, but is eng_Latn"):
        language_id(small, "eng_Latn")
    assert small.src_lang == "spa_Latn"
    row = small("guten Morgen").input_ids  # as transformers alone uses it
    assert [row[0], row[-1]] == [language_id(small, "spa_Latn"), 2]
    assert max(small.get_vocab().values()) < len(small)


@pytest.mark.parametrize("word", ["eng_Latn", "deu_Latn", "</s>", "<mask>"])
def test_special_tokens_in_a_text_stay_plain_text(word, small):
    inside = encode(small, [f"a {word} b"], "deu_Latn")[0][1:-1]
    assert set(inside) & set(small.all_special_ids) <= {small.unk_token_id}  # `_` and `/` have no piece


def test_trimmed_again(folder, two, tmp_path):
    same = trimmed(folder, DEV["spa_Latn"] + DEV["deu_Latn"], ["de", "es"], padded_rows=len(two.rows))
    assert same.rows == tuple(range(len(two.rows)))
    assert {name: hashlib.sha256(each).digest() for name, each in same.files.items()} == {
        name: hashlib.sha256(each).digest() for name, each in two.files.items()
    }
    german = trimmed(folder, DEV["deu_Latn"], ["deu_Latn"], padded_rows=len(two.rows))
    at_once = trimmed(MINI, DEV["deu_Latn"], ["deu_Latn"], padded_rows=ROWS)
    assert tuple(two.rows[row] for row in german.rows) == at_once.rows
    assert german.files["tokenizer.json"] == at_once.files["tokenizer.json"]


def test_rows_give_the_same_logits(folder, two, full, small):
    tensors = load_file(MINI / "model.safetensors")
    cut = {name: tensor[list(two.rows)] if tensor.shape[0] == ROWS else tensor for name, tensor in tensors.items()}
    assert sum(tensors[name].shape != cut[name].shape for name in cut) >= 1
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    logits = []
    for model, tokenizer in ((load_model("mini"), full), (load_model(folder), small)):
        source = encode(tokenizer, [DEV["deu_Latn"][0]], "deu_Latn")
        target = encode(tokenizer, [DEV["spa_Latn"][0]], "spa_Latn")
        with torch.inference_mode():
            logits.append(model(input_ids=torch.tensor(source), decoder_input_ids=torch.tensor(target)).logits)
    assert logits[1].shape[-1] == len(two.rows)
    torch.testing.assert_close(logits[1], logits[0][..., list(two.rows)], rtol=1e-4, atol=1e-4)


def nllb_200(folder):
    """Files as those of NLLB-200: 202 languages and `<mask>` among the pieces, merges as strings, padded rows."""
    folder.mkdir()
    content = read(MINI / "tokenizer.json")
    pieces = [piece for piece, _ in sorted(content["model"]["vocab"].items(), key=lambda item: item[1])]
    codes = [each.token for each in all_languages()]
    ids = {piece: number for number, piece in enumerate([*pieces, *codes, "<mask>"])}
    template = {**content["added_tokens"][0], "special": True}
    mask = next(token for token in content["added_tokens"] if token["content"] == "<mask>")
    added = [{**template, "id": ids[token], "content": token} for token in (*SPECIAL[:4], *codes)]
    old_metaspace = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    content["added_tokens"] = [*added, {**mask, "id": ids["<mask>"]}]
    content["pre_tokenizer"] = content["decoder"] = old_metaspace
    content["model"] |= {"vocab": ids, "merges": [" ".join(merge) for merge in content["model"]["merges"]]}
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("</s>", "eng_Latn")]
    specials = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("</s>", "eng_Latn")}
    both = [{"Sequence": {"id": side, "type_id": 0}} for side in "AB"]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [both[0], *ends],
        "pair": [*both, *ends],
        "special_tokens": specials,
    }
    content["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    config = {**read(MINI / "config.json"), "vocab_size": len(ids) + 2, "forced_bos_token_id": ids["eng_Latn"]}
    generation = {**read(MINI / "generation_config.json"), "forced_bos_token_id": ids["deu_Latn"], "eos_token_id": [2]}
    roles = read(MINI / "special_tokens_map.json")
    tokenizer_config = {key: value for key, value in roles.items() if key.endswith("_token")}
    tokenizer_config |= {"tokenizer_class": "NllbTokenizer", "src_lang": None, "tgt_lang": "eng_Latn"}
    files = {"tokenizer.json": content, "config.json": config, "generation_config.json": generation}
    files |= {"tokenizer_config.json": tokenizer_config}
    files |= {"special_tokens_map.json": {**roles, "additional_special_tokens": codes}}
    for name, each in files.items():
        (folder / name).write_text(json.dumps(each, ensure_ascii=False), encoding="utf-8")
    return folder


def test_files_of_nllb_200(tmp_path):
    origin = nllb_200(tmp_path / "original")
    before = load_tokenizer(origin)
    assert len(before) == 6001 + 203
    vocabulary = trimmed(origin, DEV["rus_Cyrl"] + DEV["deu_Latn"], ["rus_Cyrl", "de"], padded_rows=6001 + 205)
    folder = written(vocabulary, tmp_path / "trimmed", origin)
    after = load_tokenizer(folder)
    assert len(after) == len(vocabulary.rows) == vocabulary.config["vocab_size"]
    for code in ("rus_Cyrl", "deu_Latn"):
        rows = [[vocabulary.rows[each] for each in ids] for ids in encode(after, DEV[code], code)]
        assert rows == encode(before, DEV[code], code)
    with pytest.raises(UsageError, match="of the model's, deu_Latn, rus_Cyrl, but is ace_Latn"):
        language_id(after, "ace_Latn")
    new = after.get_vocab()
    content = read(folder / "tokenizer.json")
    assert all(isinstance(merge, str) for merge in content["model"]["merges"])
    assert set(content["post_processor"]["special_tokens"]) == {"</s>", "deu_Latn"}
    assert content["post_processor"]["special_tokens"]["deu_Latn"]["ids"] == [new["deu_Latn"]]
    assert content["post_processor"]["pair"][-1]["SpecialToken"]["id"] == "deu_Latn"
    assert content["padding"]["pad_id"] == new["<pad>"]
    assert vocabulary.config["forced_bos_token_id"] is None  # English is gone
    generation = read(folder / "generation_config.json")
    assert generation == {**read(origin / "generation_config.json"), "forced_bos_token_id": new["deu_Latn"]}
    assert read(folder / "special_tokens_map.json")["additional_special_tokens"] == ["deu_Latn", "rus_Cyrl"]
    assert read(folder / "tokenizer_config.json")["tgt_lang"] is None


def test_files_saved_by_transformers_5(tmp_path, full):
    """The languages are in a list that 4.57 cannot read; the trimmed files load on both lines."""
    origin = tmp_path / "original"
    origin.mkdir()
    for name in SMALL_FILES:
        shutil.copy(MINI / name, origin)
    old = read(origin / "tokenizer_config.json")
    config = {key: value for key, value in old.items() if key != "added_tokens_decoder"}
    config["extra_special_tokens"] = config.pop("additional_special_tokens")
    (origin / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = trimmed(origin, DEV["swh_Latn"], ["swh_Latn"], padded_rows=ROWS)
    assert set(vocabulary.files) == {"tokenizer.json", "tokenizer_config.json"}
    after = load_tokenizer(written(vocabulary, tmp_path / "trimmed", origin))
    rows = [[vocabulary.rows[each] for each in ids] for ids in encode(after, DEV["swh_Latn"], "swh_Latn")]
    assert rows == encode(full, DEV["swh_Latn"], "swh_Latn")
    assert len(after) == len(vocabulary.rows)


def changed(folder, name, **fields):
    (folder / name).write_text(json.dumps({**read(folder / name), **fields}), encoding="utf-8")


def cut(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-100])


def other_model(folder, **fields):
    changed(folder, "tokenizer.json", model={**read(folder / "tokenizer.json")["model"], **fields})


def gap(folder):
    added = read(folder / "tokenizer.json")["added_tokens"]
    changed(folder, "tokenizer.json", added_tokens=[*added[:-1], {**added[-1], "id": ROWS + 5}])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "must hold a `tokenizer.json`"),
        (cut, "is not valid JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "must be a BPE tokenizer"),
        (lambda folder: other_model(folder, type="Unigram"), "must be a BPE tokenizer .* is Unigram instead"),
        (lambda folder: other_model(folder, dropout=0.1), "must be null .* is 0.1 instead"),
        (lambda folder: other_model(folder, continuing_subword_prefix="##"), "must be null"),
        (lambda folder: other_model(folder, merges=[["en", "never a piece"]]), "must be a whole tokenizer"),
        (gap, "must number its added tokens on from its pieces"),
        (lambda folder: (folder / "config.json").write_text("3"), "must be an object of settings"),
    ],
)
def test_what_cannot_be_trimmed(damage, reason, tmp_path):
    for name in SMALL_FILES:
        shutil.copy(MINI / name, tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=reason) as raised:
        trimmed(tmp_path, DEV["deu_Latn"], ["deu_Latn"], padded_rows=ROWS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("texts", "languages", "rows", "reason"),
    [
        (["", "  "], ["deu_Latn"], ROWS, "`texts` must hold lines"),
        (["ja"], [], ROWS, "`languages` must name at least one"),
        (["ja"], ["deu_Latn", "fra_Latn"], ROWS, "must be of the model's, arb_Arab, .* but has fra_Latn too"),
        (["ja"], ["klingon"], ROWS, "`language` must be"),
        (["ja"], ["deu_Latn"], ROWS - 1, "must have ids below the model's 6,011 rows, but has 6,011"),
    ],
)
def test_wrong_requests(texts, languages, rows, reason):
    with pytest.raises(UsageError, match=reason):
        trimmed(MINI, texts, languages, padded_rows=rows)


@pytest.mark.parametrize("value", [-1, None, "two", ROWS + 7])
def test_odd_ids_in_a_configuration_move_nothing_else(value, tmp_path):
    for name in SMALL_FILES:
        shutil.copy(MINI / name, tmp_path)
    changed(tmp_path, "config.json", sep_token_id=value)
    vocabulary = trimmed(tmp_path, DEV["deu_Latn"][:5], ["deu_Latn"], padded_rows=ROWS)
    expected = {"sep_token_id": None} if value == ROWS + 7 else {}
    assert vocabulary.config == {"vocab_size": len(vocabulary.rows), **expected}
