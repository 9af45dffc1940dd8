import struct

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.identification import FastTextFile, Py3LangId, identifier_of, languages_of_label
from nllb_prune.languages import all_languages, confusable_group, language_set
from nllb_prune.model.source import embedded_text

MINI = language_set("mini").codes


def lines(code, count=100):
    return (embedded_text() / "test" / f"{code}.test").read_text(encoding="utf-8").splitlines()[:count]


def write_fasttext(path, words, labels, weights):
    """A supervised fastText model, softmax, no n-grams: version 12 of the format, `weights` (words, labels).

    The vector of a text is the mean of its words' rows; here row n is the weights of word n, and the output matrix the
    identity, so that the logits are the mean of the weights.
    """
    size = len(labels)
    entries = [(word, 0) for word in words] + [(f"__label__{label}", 1) for label in labels]
    content = struct.pack("<ii", 793712314, 12)
    arguments = (
        size,
        1,
        1,
        1,
        1,
        1,
        3,
        3,
        0,
        0,
        0,
        1,
    )  # dim ws epoch minCount neg wordNgrams softmax sup buckets 0 0 rate
    content += struct.pack("<12i", *arguments) + struct.pack("<d", 1e-4)
    content += struct.pack("<iiiqq", len(entries), len(words), size, 1, -1)
    for word, kind in entries:
        content += word.encode() + b"\0" + struct.pack("<qb", 1, kind)
    for matrix in (np.asarray(weights, np.float32), np.eye(size, dtype=np.float32)):
        content += struct.pack("<?qq", False, *matrix.shape) + matrix.tobytes()
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("lid") / "tiny.bin"
    labels = ["eng_Latn", "de", "cmn_Hani", "tlh_Latn"]
    weights = [[0, 0, 0, 0], [4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [1, 1, 1, 9], [4, 0, 0, 0]]
    return write_fasttext(path, ["</s>", "the", "das", "的", "qapla", "12"], labels, weights)


# the usual identifier


@pytest.mark.parametrize("code", MINI)
def test_short_lines_among_the_languages_of_mini(code):
    found = Py3LangId().identify(lines(code), MINI)
    assert found.languages == MINI
    assert found.labels.count(code) >= 94
    assert found.probabilities.sum(axis=1) == pytest.approx(1)


def test_labels_are_among_the_languages_asked_for():
    found = Py3LangId().identify(lines("deu_Latn"), ["eng_Latn", "swh_Latn"])
    assert set(found.labels) <= {"eng_Latn", "swh_Latn"}
    assert found.confidences == pytest.approx(found.probabilities.max(axis=1))


def test_it_equals_its_own_package():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    theirs = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    theirs.set_languages(["en", "de", "es"])
    texts = lines("spa_Latn", 20)
    ours = Py3LangId().identify(texts, ["deu_Latn", "eng_Latn", "spa_Latn"])
    for text, row in zip(texts, ours.probabilities, strict=True):
        expected = dict(theirs.rank(text))
        assert row == pytest.approx([expected["de"], expected["en"], expected["es"]], abs=1e-6)


@pytest.mark.parametrize("text", ["", "  ", "123", "?!", "12:30"])
def test_nothing_can_be_told_without_letters(text):
    found = Py3LangId().identify([text, "guten morgen"], ["eng_Latn", "deu_Latn"])
    assert found.labels == [None, "deu_Latn"]
    assert np.isnan(found.probabilities[0]).all()


def test_unknown_languages_are_left_out():
    identifier = Py3LangId()
    assert identifier.known(["kea_Latn", "eng_Latn", "dik_Latn"]) == ("eng_Latn",)
    assert identifier.identify(["good morning"], ["kea_Latn", "eng_Latn"]).languages == ("eng_Latn",)
    nothing = identifier.identify(["bon dia", "x"], ["kea_Latn"])
    assert nothing.languages == ()
    assert nothing.labels == [None, None]
    assert np.isnan(nothing.confidences).all()


def test_both_kinds_of_chinese_are_known():
    identifier = Py3LangId()
    assert identifier.known(["zho_Hant", "zho_Hans"]) == ("zho_Hant", "zho_Hans")
    assert identifier.identify(["今天天气很好"], ["eng_Latn", "zho_Hant"]).labels == ["zho_Hant"]


def test_signature_names_the_version():
    from importlib.metadata import version

    assert Py3LangId().signature == f"py3langid-{version('py3langid')}"
    assert isinstance(identifier_of(), Py3LangId)


# labels


@pytest.mark.parametrize(
    ("label", "codes"),
    [
        ("en", ("eng_Latn",)),
        ("no", ("nob_Latn",)),
        ("sw", ("swh_Latn",)),
        ("zh", ("zho_Hans", "zho_Hant")),
        ("cmn_Hani", ("zho_Hans", "zho_Hant")),
        ("fas_Arab", ("pes_Arab", "prs_Arab")),
        ("fil_Latn", ("tgl_Latn",)),
        ("ekk_Latn", ("est_Latn",)),
        ("als", ()),
        ("ace", ()),  # in two scripts
        ("tlh_Latn", ()),
    ],
)
def test_languages_of_labels(label, codes):
    assert languages_of_label(label) == codes


def test_every_flores_code_is_its_own_label():
    for each in all_languages():
        assert each.code in languages_of_label(each.code)


# fastText files


def test_fasttext_probabilities_are_shared_out_among_the_languages(file):
    identifier = identifier_of(file)
    assert isinstance(identifier, FastTextFile)
    assert identifier.known(["swh_Latn", "zho_Hant", "deu_Latn"]) == ("zho_Hant", "deu_Latn")
    found = identifier.identify(["das the das", "qapla\nthe", "12"], ["eng_Latn", "deu_Latn"])
    # the means of the weights of three and of two words and of `</s>`, which ends every text
    expected = [np.exp([4 / 4, 8 / 4]), np.exp([5 / 3, 1 / 3])]
    for row, each in zip(found.probabilities, expected, strict=False):
        assert row == pytest.approx(each / each.sum(), abs=1e-4)
    assert found.labels == ["deu_Latn", "eng_Latn", None]


def test_fasttext_label_of_two_languages_is_the_first_ones(file):
    found = identifier_of(file).identify(["的"], ["eng_Latn", "zho_Hant", "zho_Hans"])
    assert found.languages == ("eng_Latn", "zho_Hant")
    assert found.labels == ["zho_Hant"]


def test_fasttext_of_no_known_word_cannot_tell(file):
    assert identifier_of(file).identify(["unbekannt"], ["eng_Latn", "deu_Latn"]).labels == [None]


def test_signature_of_a_file_is_of_its_content(file, tmp_path):
    other = write_fasttext(tmp_path / "tiny.bin", ["</s>", "the"], ["eng_Latn", "de"], [[0, 0], [1, 0]])
    first, second = identifier_of(file).signature, identifier_of(other).signature
    assert first.startswith("fasttext-tiny.bin-")
    assert first != second


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(UsageError, match=r"none\.bin` must be a fastText model file, but there is no such file"):
        identifier_of(tmp_path / "none.bin")
    (tmp_path / "text.bin").write_text("hello")
    with pytest.raises(UsageError, match=r"text\.bin` must be a fastText model file, but cannot be read"):
        identifier_of(tmp_path / "text.bin")


def test_without_fasttext_the_extra_is_named(file, monkeypatch):
    from nllb_prune.evaluation.detectors import identification

    monkeypatch.setitem(__import__("sys").modules, "fasttext", None)
    identification._fasttext.cache_clear()
    with pytest.raises(UsageError, match=r"pip install nllb-prune\[fasttext\]"):
        identifier_of(file)


# confusable groups


def test_groups_are_of_known_languages_and_do_not_overlap():
    codes = {each.code for each in all_languages()}
    groups = {confusable_group(code) for code in codes}
    assert {code for group in groups for code in group} == codes
    assert sum(map(len, groups)) == len(codes)


def test_known_groups():
    assert "ary_Arab" in confusable_group("arb_Arab")
    assert confusable_group("srp_Cyrl") == confusable_group("hrv_Latn") == ("bos_Latn", "hrv_Latn", "srp_Cyrl")
    assert confusable_group("ind_Latn") == ("ind_Latn", "zsm_Latn")
    assert confusable_group("deu_Latn") == ("deu_Latn",)
