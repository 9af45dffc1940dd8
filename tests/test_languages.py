import subprocess
import sys
from collections import Counter
from pathlib import Path
from shutil import copy, copytree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune import languages as languages_module
from nllb_prune.errors import UsageError
from nllb_prune.languages import (
    PruningSettings,
    all_languages,
    find_language,
    language,
    language_set,
    language_set_names,
    parse_directions,
)

ROOT = Path(__file__).parents[1]
CODES = ("eng_Latn", "deu_Latn", "zho_Hans")


def test_nllb_200_has_202_languages_with_one_code_and_token_each():
    languages = all_languages()
    assert len(languages) == 202
    assert [each.code for each in languages] == sorted({each.code for each in languages})
    assert len({each.token for each in languages}) == 202
    assert len({each.name for each in languages}) == 202


def test_tokens_are_those_of_the_tokenizer():
    module = pytest.importorskip("transformers.models.nllb.tokenization_nllb")
    assert {each.token for each in all_languages()} == set(module.FAIRSEQ_LANGUAGE_CODES)


def test_flores_files_without_a_token_are_no_languages():
    assert find_language("arb_Latn") is None
    assert find_language("min_Arab") is None


def test_every_name_of_every_language_finds_it_and_no_other():
    for each in all_languages():
        names = (each.code, each.token, each.flores_plus, each.iso639_1, *each.aliases)
        for name in filter(None, names):
            assert language(name) is each
            assert language(name.upper().replace("_", "-")) is each


def test_only_santali_has_a_token_that_is_not_its_code():
    assert [(each.code, each.token) for each in all_languages() if each.token != each.code] == [
        ("sat_Olck", "sat_Beng")
    ]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("cmn_Hans", "zho_Hans"),
        ("cmn_Hant", "zho_Hant"),
        ("fil_Latn", "tgl_Latn"),
        ("ekk_Latn", "est_Latn"),
        ("gug_Latn", "grn_Latn"),
        ("ktu_Latn", "kon_Latn"),
        ("zgh_Tfng", "tzm_Tfng"),
        ("twi_Latn_akua1239", "aka_Latn"),
        ("twi_Latn_asan1239", "twi_Latn"),
        ("apc_Arab_nort3139", "apc_Arab"),
        ("apc_Arab_sout3123", "ajp_Arab"),
        ("zh-Hans", "zho_Hans"),
        ("zh-Hant", "zho_Hant"),
        ("zt", "zho_Hant"),
        ("pt-BR", "por_Latn"),
        ("pb", "por_Latn"),
        ("no", "nob_Latn"),
        ("ceb", "ceb_Latn"),
        ("sat", "sat_Olck"),
    ],
)
def test_other_names(name, code):
    assert language(name).code == code


@pytest.mark.parametrize(
    ("iso639_1", "code"),
    [
        ("ar", "arb_Arab"),
        ("az", "azj_Latn"),
        ("fa", "pes_Arab"),
        ("kr", "knc_Latn"),
        ("ks", "kas_Arab"),
        ("ku", "kmr_Latn"),
        ("lv", "lvs_Latn"),
        ("ms", "zsm_Latn"),
        ("sq", "als_Latn"),
        ("zh", "zho_Hans"),
    ],
)
def test_two_letter_code_of_several_languages_means_the_standard_one(iso639_1, code):
    assert [each.code for each in all_languages() if each.iso639_1 == iso639_1] == [code]


def test_two_letter_codes():
    codes = [each.iso639_1 for each in all_languages() if each.iso639_1]
    assert len(codes) == len(set(codes))
    assert all(len(code) == 2 and code.islower() for code in codes)


def test_three_letter_code_of_two_scripts_is_refused():
    with pytest.raises(UsageError, match=r"zho_Hans \(Chinese \(Simplified\)\), zho_Hant"):
        language("zho")


def test_fields():
    swahili = language("sw")
    assert (swahili.code, swahili.name, swahili.script, swahili.resource) == ("swh_Latn", "Swahili", "Latn", "high")
    assert language("eng_Latn").flores_plus is None
    assert language("tur_Latn").resource is None


@pytest.mark.parametrize(
    ("name", "wanted"), [("deu_Lat", "deu_Latn (German)"), ("german", "deu_Latn (German)"), ("xx_Xxxx", "all 202")]
)
def test_unknown_language(name, wanted):
    with pytest.raises(UsageError) as error:
        language(name)
    assert f"but is `{name}` instead" in str(error.value)
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def test_published_resource_classes():
    assert Counter(each.resource for each in all_languages()) == {"high": 20, "low": 22, "very_low": 11, None: 149}


@pytest.mark.parametrize(
    ("name", "classes", "kept"),
    [
        ("paper-30", {"high": 10, "low": 10, "very_low": 10}, 0.25),
        ("paper-53", {"high": 20, "low": 22, "very_low": 11}, 0.1875),
        ("nllb-202", {"high": 20, "low": 22, "very_low": 11, None: 149}, 0.1875),
        ("mini", {"high": 7, None: 3}, 0.25),
    ],
)
def test_language_sets(name, classes, kept):
    languages = language_set(name)
    assert Counter(each.resource for each in languages.languages) == classes
    assert len(set(languages.codes)) == len(languages.codes)
    overrides = {"eng_Latn": {"decoder": 12}} if name == "mini" else {}
    assert languages.pruning == PruningSettings("importance", kept, "3:1", overrides)


def test_smaller_published_set_is_part_of_the_larger():
    assert set(language_set("paper-30").codes) < set(language_set("paper-53").codes)
    assert language_set_names() == ("mini", "nllb-202", "paper-30", "paper-53")


def test_languages_of_mini_in_their_order():
    codes = "eng_Latn spa_Latn por_Latn deu_Latn rus_Cyrl arb_Arab hin_Deva zho_Hans swh_Latn tur_Latn"
    assert language_set("mini").codes == tuple(codes.split())


@pytest.mark.parametrize("name", ["paper-31", "../languages", ""])
def test_unknown_set(name):
    with pytest.raises(UsageError, match="must be one of mini, nllb-202, paper-30, paper-53, but is"):
        language_set(name)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("eng_Latn-deu_Latn", [("eng_Latn", "deu_Latn")]),
        ("eng_Latn-*", [("eng_Latn", "deu_Latn"), ("eng_Latn", "zho_Hans")]),
        ("*-eng_Latn", [("deu_Latn", "eng_Latn"), ("zho_Hans", "eng_Latn")]),
        ("zh-Hans-en, en-zh-Hans", [("zho_Hans", "eng_Latn"), ("eng_Latn", "zho_Hans")]),
        ("de-en,*-en", [("deu_Latn", "eng_Latn"), ("zho_Hans", "eng_Latn")]),
        ("*-zh-Hans", [("eng_Latn", "zho_Hans"), ("deu_Latn", "zho_Hans")]),
    ],
)
def test_directions(text, pairs):
    assert parse_directions(text, CODES) == tuple(pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one direction"),
        (" , ", "at least one direction"),
        ("eng_Latn", "`SOURCE-TARGET` pairs"),
        ("eng_Latn-eng_Latn", "two different languages, but has `eng_Latn-eng_Latn`"),
        ("eng_Latn-fra_Latn", "the languages eng_Latn, deu_Latn, zho_Hans, but has `fra_Latn`"),
        ("eng_Latn-deu_Lat", r"Did you mean deu_Latn \(German\)"),
        ("-deu_Latn", "but is `` instead"),
    ],
)
def test_wrong_directions(text, message):
    with pytest.raises(UsageError, match=message):
        parse_directions(text, CODES)


def test_directions_of_languages_outside_nllb():
    assert parse_directions("chv_Cyrl-en", ["eng_Latn", "chv_Cyrl"]) == (("chv_Cyrl", "eng_Latn"),)


@given(st.lists(st.sampled_from([each.code for each in all_languages()]), min_size=2, max_size=9, unique=True))
def test_all_directions_once_and_never_into_itself(codes):
    pairs = parse_directions("all", codes)
    assert len(pairs) == len(set(pairs)) == len(codes) * (len(codes) - 1)
    assert all(source != target for source, target in pairs)
    assert parse_directions(",".join("-".join(pair) for pair in pairs), codes) == pairs


def _run(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_set_may_give_a_language_more(monkeypatch):
    pruning = {"criterion": "top1", "kept": 0.5, "ratio": "1:1", "languages": {"eng_Latn": {"decoder": 18}}}
    content = {"languages": ["eng_Latn", "deu_Latn"], "pruning": pruning}
    real = languages_module._toml
    monkeypatch.setattr(languages_module, "_toml", lambda path: content if path.startswith("sets") else real(path))
    assert language_set.__wrapped__("mini").pruning.languages == {"eng_Latn": {"decoder": 18}}
    content["languages"] = ["deu_Latn"]
    with pytest.raises(UsageError, match="must be of the set mini, but has eng_Latn too"):
        language_set.__wrapped__("mini")


def test_import_reads_nothing():
    code = "import nllb_prune.languages as m; print(m._folder.cache_info().currsize)"
    assert _run(code, ROOT) == "0\n"


def test_data_of_an_installed_package(tmp_path):
    package = tmp_path / "nllb_prune"
    copytree(ROOT / "lang_configs", package / "lang_configs")
    (package / "__init__.py").touch()
    for name in ("languages.py", "errors.py"):
        copy(ROOT / "nllb_prune" / name, package)
    code = "import nllb_prune.languages as m; print(m._folder(), len(m.language_set('nllb-202').codes))"
    assert _run(code, tmp_path).split() == [str(package / "lang_configs"), "202"]
