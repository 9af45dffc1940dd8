"""Sentences of many languages, and a text that comes back as it was."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.languages import all_languages
from nllb_prune.segmentation import Piece, Segmented, divided, has_words, segment

CODES = [each.code for each in all_languages()]
MARKED = [  # a bar is where a sentence ends
    ("eng_Latn", "Dr. Smith met Mr. Jones at 3.14 p.m. yesterday. |He said, e.g., that U.S. troops left. |It is true."),
    (
        "eng_Latn",
        "J. R. R. Tolkien wrote it. |Really?! |Yes... maybe. |Wait… what? |Visit www.example.com. |It is fine.",
    ),
    ("eng_Latn", '"I am here," she said. |"Are you?" he asked. |(He was not.) |No! |"I am." |She left.'),
    ("eng_Latn", "He lives in the U.S. |She works for the U.S. Army until 5 p.m. |Then she has a Ph.D. student."),
    ("eng_Latn", "It costs $3.50. |See fig. 3 and No. 5. |I said no. |Gen. Lee and St. Paul, cf. Figs. 3 and 4."),
    (
        "eng_Latn",
        "https://example.com/a?b=c!d.e is long. |Ask me@example.com! |Use setup.py or e.g. make.exe. |3 is odd.",
    ),
    ("eng_Latn", "1. First item. |Second sentence."),
    ("eng_Latn", "a. First item. |It has a note.[2] |1990 was a year. |It’s over. |I don't. |She does."),
    (
        "deu_Latn",
        "Das ist z. B. gut. |Am 3. Mai kam Prof. Dr. Müller. |„Komm!“, sagte er. |»Ja.« |Er ging i. d. R. Montags.",
    ),
    (
        "deu_Latn",
        "Ludwig XIV. regierte, vgl. Abb. 3 bzw. Kap. 112. |Das war 1990. |Dann kam die 20. Sitzung d. h. Ruhe.",
    ),
    ("deu_Latn", "Die 20 Mio. Euro der Fa. Hans v. Braun u. Co. sind weg. |Usw. |Nr. 5 folgt."),
    ("fra_Latn", "M. Dupont est là. |Bonjour ! |Ça va ? |« Oui. » |Mme Durand vit av. Foch. |Il y en a. |Elle part."),
    ("spa_Latn", "¿Cómo estás? |¡Bien! |El Sr. Pérez y la Dra. Gil no están. |Los EE. UU. y el art. 3."),
    ("por_Latn", "O Sr. Silva não é. |A Dra. Costa mora na av. Brasil. |Sim!"),
    ("ita_Latn", "Sono l'Avv. Rossi. |Dott. Bianchi, lo è. |Poi basta."),
    ("nld_Latn", "Dhr. De Vries komt, bijv. Maandag. |Ja! |Mevr. Jansen ook."),
    ("pol_Latn", "Mieszka przy ul. Długiej. |Jan III Sobieski i św. Anna. |Tak."),
    ("ces_Latn", "Karel IV. vládl. |Přišel 3. května s Ing. Novákem. |Ano."),
    ("tur_Latn", "Dr. Yılmaz 3. Cadde'de oturuyor. |Evet!"),
    ("fin_Latn", "Se on esim. Helsingissä 3. Toukokuuta. |Niin."),
    ("swe_Latn", "Han bor bl.a. Stockholm, t.ex. Solna. |Ja."),
    ("vie_Latn", "TP. Hồ Chí Minh đông. |GS. Nam đến à. |Vâng."),
    ("ind_Latn", "Rumah di Jl. Sudirman. |Ya!"),
    (
        "rus_Cyrl",
        "Он родился в 1990 г. в Москве. |«Привет!» — сказал А. С. Пушкин на ул. Мира. |Т. е. да. |См. рис. 5.",
    ),
    ("ukr_Cyrl", "Ми в м. Київ на вул. Лесі. |Так!"),
    ("ell_Grek", "Τι κάνεις; |Καλά. |Ο κ. Παπαδόπουλος ήρθε· τον είδα. |Εγώ; |Ναι!"),
    ("hye_Armn", "Սա նախադասություն է։ |Սա երկրորդն է: |Ի՞նչ։ |Այո։"),
    ("kat_Geor", "ეს წინადადებაა. |ი. ჭავჭავაძე წერს. |მეორე? |დიახ!"),
    ("heb_Hebr", 'זה משפט. |האם ד"ר כהן כאן? |כן! |א. ב. יהושע.'),
    ("ydd_Hebr", "דאָס איז אַ זאַץ. |יאָ!"),
    ("arb_Arab", "هذه جملة. |هل وصل د. محمد؟ |نعم! |وهذه أخرى، كما قلت."),
    ("pes_Arab", "این یک جمله است. |آیا؟ |بله!"),
    ("urd_Arab", "یہ ایک جملہ ہے۔ |پی۔ٹی۔آئی نے کہا۔|کیا؟ |ہاں!"),
    ("hin_Deva", "यह एक वाक्य है। |डॉ. शर्मा आए। |क्या? |हाँ!|अब॥"),
    ("mar_Deva", "हे एक वाक्य आहे. |डॉ. पाटील आले. |होय!"),
    ("ben_Beng", "এটি একটি বাক্য। |ডা. রহমান ও মো. আলী। |কি?"),
    ("pan_Guru", "ਇਹ ਵਾਕ ਹੈ। |ਦੂਜਾ? |ਹਾਂ!"),
    ("guj_Gujr", "આ વાક્ય છે. |ડૉ. પટેલ આવ્યા. |હા!"),
    ("ory_Orya", "ଏହା ବାକ୍ୟ। |ଦ୍ୱିତୀୟ? |ହଁ!"),
    ("tam_Taml", "இது ஒரு வாக்கியம். |திரு. குமார் வந்தார். |ஆம்!"),
    ("tel_Telu", "ఇది వాక్యం. |డా. రావు వచ్చారు. |అవును!"),
    ("kan_Knda", "ಇದು ವಾಕ್ಯ. |ಡಾ. ಶರ್ಮಾ ಬಂದರು. |ಹೌದು!"),
    ("mal_Mlym", "ഇത് വാക്യം. |ഡോ. രാജൻ വന്നു. |അതെ!"),
    ("sin_Sinh", "මෙය වාක්‍යයකි. |දෙවැන්න? |ඔව්!"),
    ("tha_Thai", "สวัสดีครับ วันนี้อากาศดี คุณสบายดีไหม? |ดร. สมชายมา"),
    ("lao_Laoo", "ສະບາຍດີ. |ເຈົ້າສະບາຍດີບໍ? |ດີ"),
    ("mya_Mymr", "ဒါက ဝါကျ၊ ဒါပဲ။ |ပြီးပြီ။\u200b|နောက်တစ်ခု။"),
    ("khm_Khmr", "នេះជាប្រយោគ។ |ប៉ែន ខ្មៅដៃ ។ល។ |មែនទេ?"),
    ("bod_Tibt", "བཀྲ་ཤིས་བདེ་ལེགས། ང་བོད་པ་ཡིན། |ཁྱེད་རང་། དེ་རིང་༎ |ང་"),
    ("dzo_Tibt", "ང་འབྲུག་པ་ཨིན། |ང་འགྱོ་ནི། །|ད་"),
    ("amh_Ethi", "ይህ ዓረፍተ ነገር ነው። |ይህ ሌላ ነው፧ |አዎ፡፡ |እሺ፨|ደግሞ"),
    ("tir_Ethi", "እዚ ሓደ እዩ። |እወ!"),
    ("sat_Olck", "ᱱᱚᱣᱟ ᱫᱚ ᱢᱤᱫ ᱠᱟᱱᱟ᱾ |ᱱᱚᱣᱟ ᱫᱚ ᱫᱚᱥᱟᱨ᱿ |ᱦᱮᱸ᱾"),
    ("tzm_Tfng", "ⵜⴰⵏⵎⵎⵉⵔⵜ. |ⵎⴰⵏⵉⴽ? |ⵢⴰⵀ!"),
    ("kor_Hang", "안녕하세요. |잘 지내세요? |네. |3.14는 파이다."),
    ("zho_Hans", "你好。|今天天气怎么样？|很好！！|“好。”|“不。”他说。|（是的。）他走了……然后回来?|对吗"),
    ("zho_Hans", "圆周率是３．１４。|iPhone 很贵。|iPad 也是"),
    ("zho_Hant", "他說：「我來了。」然後走了。|再見！"),
    ("yue_Hant", "你好嗎？|好！"),
    ("jpn_Jpan", "こんにちは。|元気ですか？ |「行くよ。」と彼は言った。|「はい。」|「いいえ。」"),
    ("eng_Latn", "Mixed 第一。|Another؟ |Third। |End"),
]
ODD_TEXT = st.text(
    st.one_of(
        st.sampled_from(" \t\r\n\v\x1c\x85\xa0\u2028\u3000\u200b\u200d\u0301\ufe0f😀🇩🇪\ud800\udc00\0"),
        st.sampled_from(".!?…,;:-—'\"()[]«»„“”。？！「」؟۔।။។։።፡༎།᱾．1２ⅣAbcéßД你なกডཀཡིན་ا"),
        st.characters(exclude_categories=()),
    ),
    max_size=60,
)


def texts(segmented):
    return [piece.text for piece in segmented.pieces]


def again(segmented):
    return "".join(piece.before + piece.text for piece in segmented.pieces) + segmented.after


@pytest.mark.parametrize(("code", "marked"), MARKED)
def test_sentences(code, marked):
    text = marked.replace("|", "")
    assert texts(segment(text, code)) == [sentence.strip() for sentence in marked.split("|")]
    assert again(segment(text, code)) == text


def test_table_is_wide():
    assert len({code for code, _ in MARKED}) >= 50
    assert {each.script for each in all_languages()} == {code[4:] for code, _ in MARKED}


@settings(max_examples=500, deadline=None)
@given(text=ODD_TEXT, code=st.sampled_from(CODES))
def test_nothing_is_lost(text, code):
    """Whatever the text: its pieces and the white space between are the text, and no piece holds a line break."""
    segmented = segment(text, code)
    assert again(segmented) == text
    assert all(piece.text and piece.text == piece.text.strip() for piece in segmented.pieces)
    assert all(len(piece.text.splitlines()) == 1 for piece in segmented.pieces)
    assert not (segmented.after + "".join(piece.before for piece in segmented.pieces)).strip()
    assert bool(segmented.pieces) == bool(text.strip())


@settings(max_examples=200, deadline=None)
@given(text=ODD_TEXT, source=st.sampled_from(CODES), target=st.sampled_from(CODES))
def test_joined_changes_single_spaces_only(text, source, target):
    segmented = segment(text, source)
    joined = segmented.joined(texts(segmented), target=target)
    assert joined.replace(" ", "") == text.replace(" ", "")
    if target[4:] == source[4:] == "Latn":
        assert len(joined) >= len(text)


def test_lines_stay():
    segmented = segment("\r\n# Title\r\n\r\n- one, two\n  - three. \r\n", "eng_Latn")
    assert segmented.pieces == (Piece("# Title", "\r\n"), Piece("- one, two", "\r\n\r\n"), Piece("- three.", "\n  "))
    assert segmented.joined(["一", "二", "三"], target="zho_Hans") == "\r\n一\r\n\r\n二\n  三 \r\n"


@pytest.mark.parametrize("text", ["", " ", "\n", " \u3000\r\n\t"])
def test_white_space_has_no_pieces(text):
    assert segment(text, "eng_Latn") == Segmented((), text)
    assert segment(text, "eng_Latn").joined([], target="deu_Latn") == text


@pytest.mark.parametrize(
    ("source", "text", "translations", "target", "joined"),
    [
        ("zho_Hans", "你好。再见。", ["Hello.", "Bye."], "eng_Latn", "Hello. Bye."),
        ("zho_Hans", " 你好。再见。\n", ["สวัสดี", "ลาก่อน"], "tha_Thai", " สวัสดี ลาก่อน\n"),
        ("zho_Hans", "你好。再见。", ["こんにちは。", "では。"], "jpn_Jpan", "こんにちは。では。"),
        ("eng_Latn", "Hello. Bye.", ["你好。", "再见。"], "zho_Hans", "你好。再见。"),
        ("eng_Latn", "Hello. Bye.", ["ཀ།", "ཁ།"], "bod_Tibt", "ཀ། ཁ།"),
        ("eng_Latn", "Hello.  Bye.\nWell.", ["你好。", "再见。", "好。"], "zho_Hant", "你好。  再见。\n好。"),
        ("eng_Latn", "Hello.\xa0Bye.", ["你好。", "再见。"], "zho_Hans", "你好。\xa0再见。"),
        ("eng_Latn", "Hello. Bye.", ["OK.", "Bye."], "zho_Hans", "OK. Bye."),
    ],
)
def test_space_between_sentences_is_that_of_the_target(source, text, translations, target, joined):
    assert segment(text, source).joined(translations, target=target) == joined


def test_a_translation_for_each_piece():
    with pytest.raises(ValueError, match="shorter"):
        segment("One. Two.", "eng_Latn").joined(["Eins."], target="deu_Latn")


@given(text=ODD_TEXT, data=st.data())
def test_divided_anywhere(text, data):
    cuts = data.draw(st.lists(st.integers(0, len(text))).map(sorted))
    assert again(divided(text, [*cuts, len(text)])) == text


def test_any_name_of_a_language():
    assert segment("Ja. Nein.", "de") == segment("Ja. Nein.", "deu_Latn")
    with pytest.raises(UsageError, match="FLORES-200 code"):
        segment("Ja. Nein.", "xyz")


@pytest.mark.parametrize("text", ["a", "é", "你", "5", "५", "Ⅳ", "½", "...x", "😀 no", "ཀ"])
def test_words(text):
    assert has_words(text)


@pytest.mark.parametrize("text", ["", " ", "…", "😀", "---", "\u0301", "ा", "\ud800", "\u200b", "🇩🇪", "§$%", "。"])
def test_no_words(text):
    assert not has_words(text)


@pytest.mark.parametrize(
    "repeated", ["a", ".", "。", "\n", " ", "? ", '."', "«", "\u0301", "🇩🇪", "3. ", "a. B ", "\ud800"]
)
@pytest.mark.parametrize("code", ["deu_Latn", "bod_Tibt"])
def test_time_is_linear(repeated, code):
    """A quadratic way would take minutes."""
    text = repeated * (50_000 // len(repeated))
    began = time.perf_counter()
    assert again(segment(text, code)) == text
    assert time.perf_counter() - began < 5
