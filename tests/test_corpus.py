import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError

TEXT = {"eng_Latn": ("Good morning", "", "Bye"), "deu_Latn": ("Guten Morgen", "", "Tschüss")}


def _flores(folder):
    for code, lines in TEXT.items():
        for split, part in (("dev", lines), ("devtest", lines[:1])):
            path = folder / split / f"{code}.{split}"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(part) + "\n", encoding="utf-8")
    return ParallelText.open(folder, "dev")


def _flat(folder):
    for code, lines in TEXT.items():
        (folder / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "README.txt").write_text("About this text.\n")
    return ParallelText.open(folder)


def _tsv(folder):
    rows = [("id", *TEXT), *(("7", *row) for row in zip(*TEXT.values(), strict=True))]
    path = folder / "text.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return ParallelText.open(path)


def _jsonl(folder):
    rows = [{"id": 7, **dict(zip(TEXT, row, strict=True))} for row in zip(*TEXT.values(), strict=True)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ParallelText.open(str(path))


def _card(folder, configurations):
    """Write the card of a data set: the files of each split, by configuration."""
    listed = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configurations.items()
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(listed)}\n---\n")


def _dataset_of_configurations(folder, text=TEXT, column="text"):
    """The layout of FLORES+: a configuration by code, splits dev and devtest."""
    for code, lines in text.items():
        for split, part in (("dev", lines), ("devtest", lines[:1])):
            rows = [{"id": n, column: line} for n, line in enumerate(part)]
            (folder / f"{code}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _card(folder, {code: {split: f"{code}.{split}.jsonl" for split in ("dev", "devtest")} for code in text})
    return f"datasets:{folder}"


def _by_configuration(folder):
    return ParallelText.open(_dataset_of_configurations(folder), "dev")


def _dataset_of_columns(folder):
    """The layout of FLORES-200: a column for each language; in a binary file."""
    from pyarrow import parquet, table

    columns = {"id": [1, 2, 3]} | {f"sentence_{code}": list(lines) for code, lines in TEXT.items()}
    parquet.write_table(table(columns), folder / "all.parquet")
    parquet.write_table(table({"label": [1]}), folder / "other.parquet")
    _card(folder, {"other": {"x": "other.parquet"}, "all": {"dev": "all.parquet"}})
    return ParallelText.open(f"datasets:{folder}")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keeps what the library `datasets` stores out of the home folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=[_flores, _flat, _tsv, _jsonl, _by_configuration, _dataset_of_columns])
def text(request, tmp_path):
    return request.param(tmp_path)


def test_every_layout_gives_the_same_text(text):
    assert text.languages == ("deu_Latn", "eng_Latn")
    assert {code: text.lines(code) for code in text.languages} == TEXT
    assert text.digest("eng_Latn") == "a7edba9f810cc288"


def test_text_can_be_sent_to_other_processes(text):
    sent = pickle.loads(pickle.dumps(text))
    assert {code: sent.lines(code) for code in sent.languages} == TEXT
    assert pickle.loads(pickle.dumps(sent.head(2))).digest("deu_Latn") == text.head(2).digest("deu_Latn")


def test_head(text):
    assert text.head(2).lines("deu_Latn") == TEXT["deu_Latn"][:2]
    assert text.head(9).lines("deu_Latn") == TEXT["deu_Latn"]
    assert text.head(2).head(3).lines("deu_Latn") == TEXT["deu_Latn"][:2]
    assert text.head(2).digest("deu_Latn") != text.digest("deu_Latn")
    with pytest.raises(UsageError, match="at least 1 line, but is 0"):
        text.head(0)


def test_missing_language(text):
    with pytest.raises(UsageError, match="must be one of deu_Latn, eng_Latn, but is `fra_Latn` instead"):
        text.lines("fra_Latn")


def test_other_split(tmp_path):
    _flores(tmp_path)
    assert ParallelText.open(tmp_path, "devtest").lines("eng_Latn") == ("Good morning",)


def test_names_of_flores_plus_and_of_the_tokenizer(tmp_path):
    for name in ("cmn_Hans", "sat_Beng", "apc_Arab_sout3123"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    text = ParallelText.open(tmp_path)
    assert text.languages == ("ajp_Arab", "sat_Olck", "zho_Hans")
    assert text.lines("cmn_Hans") == text.lines("zho_Hans") == ("cmn_Hans",)


def test_languages_outside_nllb_keep_their_names(tmp_path):
    (tmp_path / "chv_Cyrl.txt").write_text("x\n")
    assert ParallelText.open(tmp_path).languages == ("chv_Cyrl",)


def test_two_files_of_one_language(tmp_path):
    for name in ("cmn_Hans", "zho_Hans"):
        (tmp_path / f"{name}.txt").write_text("x\n")
    with pytest.raises(UsageError, match="one text for `zho_Hans`, but has `cmn_Hans` and `zho_Hans`"):
        ParallelText.open(tmp_path)


def test_misaligned_files(tmp_path):
    (tmp_path / "eng_Latn.txt").write_text("a\nb\n")
    (tmp_path / "deu_Latn.txt").write_text("a\nb\n\n")
    for text in (ParallelText.open(tmp_path), ParallelText.open(tmp_path).head(1)):
        text.lines("eng_Latn")
        with pytest.raises(UsageError, match="`eng_Latn` has 2 and `deu_Latn` 3 instead"):
            text.lines("deu_Latn")


def test_text_is_read_when_asked_for(tmp_path):
    text = _flat(tmp_path)
    (tmp_path / "deu_Latn.txt").unlink()
    assert text.lines("eng_Latn") == TEXT["eng_Latn"]
    (tmp_path / "eng_Latn.txt").unlink()
    assert text.lines("eng_Latn") == TEXT["eng_Latn"]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", ()),
        (b"\n", ("",)),
        (b"a", ("a",)),
        (b"a\n\n", ("a", "")),
        (b"a\r\nb\r\n", ("a", "b")),
        (b"\xef\xbb\xbfa\n", ("a",)),
        ("a\u2028b\x0bc\x85d\n".encode(), ("a\u2028b\x0bc\x85d",)),
    ],
)
def test_line_ends(tmp_path, content, lines):
    (tmp_path / "eng_Latn.txt").write_bytes(content)
    assert ParallelText.open(tmp_path).lines("eng_Latn") == lines


@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n\t", exclude_categories=["Cs"]))))
def test_round_trip(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("text")
    (folder / "eng_Latn.txt").write_bytes("".join(f"{line}\n" for line in ["first", *lines]).encode())
    assert ParallelText.open(folder).lines("eng_Latn") == ("first", *lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "eng_Latn\tdeu_Latn\na\n", "a.tsv:2` must have 2 columns as the header, but has 1"),
        ("a.tsv", "id\tname\na\tb\n", "names no language"),
        ("a.tsv", "", "names no language"),
        ("a.jsonl", '{"eng_Latn": "a"}\n{"deu_Latn": "b"}\n', "a.jsonl:2` must have one line of text for `eng_Latn`"),
        ("a.jsonl", '{"eng_Latn": "a\\nb"}\n', "a.jsonl:1` must have one line of text"),
        ("a.jsonl", '{"eng_Latn": "a"}\n\n', "a.jsonl:2` must be a JSON object"),
        ("a.jsonl", "[1]\n", "a.jsonl:1` must be a JSON object"),
        ("a.csv", "eng_Latn\na\n", "but is a `.csv` file"),
    ],
)
def test_wrong_tables(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        ParallelText.open(tmp_path / name).lines("eng_Latn")


def test_wrong_paths_and_splits(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        ParallelText.open(tmp_path / "none")
    with pytest.raises(UsageError, match="must be left out, as there are none, but is `dev`"):
        ParallelText.open(tmp_path, "dev")
    _flores(tmp_path)
    with pytest.raises(UsageError, match="must be dev, devtest, but is `test`"):
        ParallelText.open(tmp_path, "test")
    with pytest.raises(UsageError, match=r"names no language instead\. Give `split`: dev or devtest"):
        ParallelText.open(tmp_path)
    with pytest.raises(UsageError, match="must be left out for a file, but is `dev`"):
        ParallelText.open(tmp_path / "dev" / "eng_Latn.dev", "dev")


def test_dataset_of_flores_plus_names(tmp_path):
    name = _dataset_of_configurations(tmp_path, {"eng_Latn": ("one",), "cmn_Hans": ("一",), "notes": ("x",)})
    text = ParallelText.open(name, "dev")
    assert text.languages == ("eng_Latn", "zho_Hans")
    assert text.lines("zho_Hans") == ("一",)


def test_dataset_of_plain_columns_and_one_configuration(tmp_path):
    (tmp_path / "dev.jsonl").write_text(json.dumps({"cmn_Hans": "一", "eng_Latn": "one", "topic": "x"}) + "\n")
    _card(tmp_path, {"whatever": {"validation": "dev.jsonl"}})
    text = ParallelText.open(f"datasets:{tmp_path}", "validation")
    assert {code: text.lines(code) for code in text.languages} == {"zho_Hans": ("一",), "eng_Latn": ("one",)}


def test_other_split_of_a_dataset(tmp_path):
    name = _dataset_of_configurations(tmp_path)
    assert ParallelText.open(name, "devtest").lines("deu_Latn") == ("Guten Morgen",)
    with pytest.raises(UsageError, match="must be dev or devtest, but is `test` instead"):
        ParallelText.open(name, "test")
    with pytest.raises(UsageError, match="must be dev or devtest, but is missing"):
        ParallelText.open(name)


def test_languages_of_a_dataset_are_found_without_its_text(tmp_path):
    name = _dataset_of_configurations(tmp_path)
    for path in tmp_path.glob("*.jsonl"):
        path.write_text("not JSON\n")
    text = ParallelText.open(name, "dev")
    assert text.languages == ("deu_Latn", "eng_Latn")
    with pytest.raises(UsageError, match="cannot be read"):
        text.lines("deu_Latn")


def test_unknown_dataset_without_network():
    with pytest.raises(UsageError, match=r"`datasets:owner/none` must be a data set on the Hub.*reach") as raised:
        ParallelText.open("datasets:owner/none", "dev")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ({"eng_Latn": ("a",)}, "line", "must have a column text or sentence, but has id, line instead"),
        ({"deu_Latn": ("a",)}, "text", "must be one of deu_Latn, but is `eng_Latn` instead"),
        ({"eng_Latn": ("a\nb",)}, "text", "eng_Latn/dev:1` must have one line of text for `text`"),
        ({"notes": ("a",)}, "text", "a column .* of each code, but has id, text instead"),
        ({"notes": ("a",), "more": ("a",)}, "text", "of each code, but has notes, more instead"),
    ],
)
def test_wrong_datasets(tmp_path, text, column, message):
    name = _dataset_of_configurations(tmp_path, text, column)
    with pytest.raises(UsageError, match=message):
        ParallelText.open(name, "dev").lines("eng_Latn")


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"not installed\. Run `pip install 'nllb-prune\[datasets\]'`"):
        ParallelText.open("datasets:owner/name", "dev")


def test_reading_a_dataset_is_quiet(tmp_path, capfd):
    import datasets

    _by_configuration(tmp_path).lines("eng_Latn")
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled()


def test_flores_plus_folder(tmp_path):
    """FLORES+ in the layout of FLORES-200, under its own names."""
    for name in ("cmn_Hans", "fil_Latn", "ekk_Latn", "eng_Latn"):
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / f"{name}.dev").write_text(f"{name}\n")
    text = ParallelText.open(tmp_path, "dev")
    assert text.languages == ("eng_Latn", "est_Latn", "tgl_Latn", "zho_Hans")
    assert text.lines("est_Latn") == ("ekk_Latn",)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "eng_Latn.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UsageError, match="must be UTF-8 text"):
        ParallelText.open(tmp_path).lines("eng_Latn")


def test_import_needs_no_heavy_library():
    code = "import sys, nllb_prune.corpus; print({'datasets', 'pandas'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "set()\n"


def test_survives_pickling_by_its_files(tmp_path):
    for code in ("eng_Latn", "deu_Latn"):
        (tmp_path / f"{code}.txt").write_text(f"{code} 1\n{code} 2\n{code} 3\n", encoding="utf-8")
    content = pickle.dumps(ParallelText.open(tmp_path).head(2))
    assert b"eng_Latn 1" not in content
    assert pickle.loads(content).lines("eng_Latn") == ("eng_Latn 1", "eng_Latn 2")


def test_text_of_no_file_survives_pickling_with_its_lines():
    text = pickle.loads(pickle.dumps(ParallelText({"eng_Latn": lambda: ("a", "b", "c")}).head(2)))
    assert text.lines("eng_Latn") == ("a", "b")
