import json
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


@pytest.fixture(params=[_flores, _flat, _tsv, _jsonl])
def text(request, tmp_path):
    return request.param(tmp_path)


def test_every_layout_gives_the_same_text(text):
    assert text.languages == ("deu_Latn", "eng_Latn")
    assert {code: text.lines(code) for code in text.languages} == TEXT
    assert text.digest("eng_Latn") == "a7edba9f810cc288"


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


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "eng_Latn.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UsageError, match="must be UTF-8 text"):
        ParallelText.open(tmp_path).lines("eng_Latn")


def test_import_needs_no_heavy_library():
    code = "import sys, nllb_prune.corpus; print({'datasets', 'pandas'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "set()\n"
