import pytest

from nllb_prune.serving.http.asked import Offer
from nllb_prune.serving.http.codes import ServedLanguages
from nllb_prune.serving.http.problems import Problem
from nllb_prune.serving.http.settings import ServerSettings

PAIRS = (("eng_Latn", "deu_Latn"), ("eng_Latn", "zho_Hans"), ("deu_Latn", "eng_Latn"), ("zho_Hans", "por_Latn"))
RIGHT = {"q": "hello", "source": "en", "target": "de"}


def offer(*, beams=4, full=True, **settings):
    return Offer(settings=ServerSettings(**settings), languages=ServedLanguages(PAIRS), beams=beams, full=full)


def test_a_text():
    asked = offer().asked(RIGHT)
    assert (asked.texts, asked.listed, asked.source, asked.target) == (("hello",), False, "eng_Latn", "deu_Latn")
    assert (asked.html, asked.search.beams, asked.alternatives, asked.full) == (False, 1, 0, False)


def test_a_list():
    asked = offer().asked({**RIGHT, "q": ["a", ""]})
    assert asked.listed
    assert asked.texts == ("a", "")


@pytest.mark.parametrize(
    ("name", "code"),
    [("zh", "zho_Hans"), ("zh-Hans", "zho_Hans"), ("ZHO_HANS", "zho_Hans"), ("pt-BR", "por_Latn"), ("pb", "por_Latn")],
)
def test_languages_go_by_many_names(name, code):
    assert offer().asked({**RIGHT, "target": name}).target == code


def test_auto_is_found_out_later():
    assert offer().asked({**RIGHT, "source": "auto"}).source is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": None}, "Invalid request: missing q parameter"),
        ({"q": ""}, "Invalid request: missing q parameter"),
        ({"q": []}, "Invalid request: missing q parameter"),
        ({"q": None, "source": None}, "Invalid request: missing q parameter"),
        ({"source": None, "target": "xx"}, "Invalid request: missing source parameter"),
        ({"target": ""}, "Invalid request: missing target parameter"),
        ({"q": 5}, "Invalid request: q parameter is not a text or a list of texts"),
        ({"q": ["a", 5]}, "Invalid request: q parameter is not a text or a list of texts"),
        ({"q": {"a": 1}}, "Invalid request: q parameter is not a text or a list of texts"),
        ({"source": 5}, "Invalid request: source parameter is not a text"),
        ({"target": ["de"]}, "Invalid request: target parameter is not a text"),
        ({"alternatives": "many"}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": True}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": 1.5}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": float("inf")}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": "9" * 5000}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": 4}, "Invalid request: alternatives parameter must be <= 3"),
        ({"q": ["a"] * 4}, "Invalid request: request (4) exceeds text limit (3)"),
        ({"q": "a" * 11}, "Invalid request: request (11) exceeds text limit (10)"),
        ({"q": ["a", "b" * 12]}, "Invalid request: request (12) exceeds text limit (10)"),
        ({"q": "a" * 11, "source": "xx"}, "Invalid request: request (11) exceeds text limit (10)"),
        ({"source": "xx"}, "xx is not supported"),
        ({"source": "fra_Latn"}, "fra_Latn is not supported"),
        ({"target": "fr"}, "fr is not supported"),
        ({"source": "por_Latn"}, "por_Latn is not supported"),
        ({"target": "auto"}, "auto is not supported"),
        ({"source": "x" * 1000}, "x" * 64 + " is not supported"),
        ({"format": "pdf"}, "pdf format is not supported"),
        ({"format": ["html"]}, "['html'] format is not supported"),
    ],
)
def test_refused_with_the_texts_that_clients_know(change, message):
    with pytest.raises(Problem) as refused:
        offer(characters=10, texts=3).asked({**RIGHT, **change})
    assert (refused.value.status, refused.value.message) == (400, message)


def test_no_limits():
    asked = offer(characters=None, texts=None).asked({**RIGHT, "q": ["a" * 100_000] * 1000})
    assert asked.size == 100_000_000


@pytest.mark.parametrize(("given", "count"), [(0, 0), ("0", 0), ("2", 2), (2.0, 2), (-3, 0), (None, 0), ("", 0)])
def test_alternatives(given, count):
    asked = offer().asked({**RIGHT, "alternatives": given})
    assert asked.alternatives == count
    assert asked.search.beams == count + 1


def test_beams_of_the_server_are_for_all():
    assert offer(beams=4).asked(RIGHT).search.beams == 1
    assert (
        Offer(settings=ServerSettings(beams=3), languages=ServedLanguages(PAIRS), beams=4, full=False)
        .asked(RIGHT)
        .search.beams
        == 3
    )


def test_a_full_request():
    asked = offer().asked_in_full({**RIGHT, "experts": "all", "beams": 3, "alternatives": 1})
    assert (asked.full, asked.search.beams, asked.alternatives) == (True, 3, 1)
    assert not offer().asked_in_full(RIGHT).full


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": ["a"]}, "Invalid request: q parameter is not a text"),
        ({"experts": "some"}, "experts must be kept or all, not some"),
        ({"experts": "all"}, "The full model is not served here; experts must be kept"),
        ({"beams": 5}, "Invalid request: beams parameter must be <= 4"),
    ],
)
def test_a_full_request_refused(change, message):
    with pytest.raises(Problem) as refused:
        offer(full=False).asked_in_full({**RIGHT, **change})
    assert refused.value.message == message


def test_directions():
    offer().check_direction("eng_Latn", "deu_Latn")
    offer().check_direction("eng_Latn", "eng_Latn")
    with pytest.raises(Problem, match=r"Portuguese \(pt\) is not available as a target language from English \(en\)"):
        offer().check_direction("eng_Latn", "por_Latn")
