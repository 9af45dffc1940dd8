import httpx
import pytest

from tests.serving.http.servers import Upper, serving


@pytest.fixture(scope="module")
def server():
    with serving(Upper(), characters=100, texts=5) as running:
        yield running


def test_a_text(server):
    answer = server.translate()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"translatedText": "GOOD MORNING"}


def test_a_list_comes_back_as_a_list(server):
    assert server.translate(["a", "", "b"]).json() == {"translatedText": ["A", "", "B"]}
    assert server.translate(["a"]).json() == {"translatedText": ["A"]}


def test_alternatives(server):
    found = server.translate("a", alternatives=2).json()
    assert found == {"translatedText": "A", "alternatives": ["A!", "A!!"]}
    found = server.translate(["a", "b"], alternatives=1).json()
    assert found == {"translatedText": ["A", "B"], "alternatives": [["A!"], ["B!"]]}


def test_auto(server):
    text = "die katze schläft heute in der sonne"
    found = server.translate("buenos días, ¿cómo estás?", source="auto").json()
    assert found["detectedLanguage"]["language"] == "es"
    assert 0 < found["detectedLanguage"]["confidence"] <= 100
    found = server.translate(["what is the weather like today", "今天天气怎么样"], source="auto").json()
    assert [each["language"] for each in found["detectedLanguage"]] == ["en", "zh-Hans"]
    # German is only translated into here, so nothing is found to be German
    assert server.translate(text, source="auto", target="en").json()["detectedLanguage"]["language"] != "de"


def test_auto_where_nothing_can_be_told(server):
    found = server.translate("12:30", source="auto").json()
    assert found["detectedLanguage"] == {"language": "en", "confidence": 0.0}


def test_what_is_in_the_target_language_stays(server):
    assert server.translate("good morning", source="en", target="en").json() == {"translatedText": "good morning"}
    found = server.translate(["what is the weather like", "buenos días"], source="auto", target="en").json()
    assert found["translatedText"] == ["what is the weather like", "BUENOS DÍAS"]


def test_html(server):
    html = '<p title="a &amp; b">good <b>morning</b> &lt; all<br></p><script>x < y</script>'
    found = server.translate(html, format="html").json()["translatedText"]
    assert found == '<p title="a &amp; b">GOOD <b>MORNING</b> &lt; ALL<br></p><script>x < y</script>'
    assert server.translate("<br>", format="html").json() == {"translatedText": "<br>"}
    found = server.translate("<i>a</i> b", format="html", alternatives=1).json()
    assert found["alternatives"] == ["<i>A!</i> B!"]


def test_forms(server):
    content = {"q": "good morning", "source": "en", "target": "de"}
    assert server.client.post("/translate", data=content).json() == {"translatedText": "GOOD MORNING"}
    several = {**content, "q": ["a", "b"], "alternatives": "1"}
    assert server.client.post("/translate", data=several).json()["alternatives"] == [["A!"], ["B!"]]
    parts = {name: (None, value) for name, value in content.items()}
    assert server.client.post("/translate", files=parts).json() == {"translatedText": "GOOD MORNING"}
    assert server.client.post("/translate", params=content).json() == {"translatedText": "GOOD MORNING"}


@pytest.mark.parametrize("q", ["grüße aus köln", "доброе утро", "早上好"])
def test_forms_in_raw_utf_8(server, q):
    answer = server.client.post(
        "/translate",
        content=f"q={q}&source=en&target=de".encode(),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.json() == {"translatedText": q.upper()}


def test_text_without_words_needs_no_direction(server):
    assert server.translate("!!!", source="zh", target="zh").json() == {"translatedText": "!!!"}
    assert server.translate(["?!", "buenos días"], source="auto", target="en").json()["translatedText"] == [
        "?!",
        "BUENOS DÍAS",
    ]


def test_head(server):
    for path in ("/", "/health", "/languages"):
        answer = server.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_file_is_no_text(server):
    answer = server.client.post("/translate", files={"q": ("a.txt", b"hello")}, data={"source": "en", "target": "de"})
    assert (answer.status_code, answer.json()) == (
        400,
        {"error": "Invalid request: q parameter is not a text or a list of texts"},
    )


def test_lines_of_forms_end_as_everywhere(server):
    answer = server.client.post("/translate", data={"q": "a\r\nb", "source": "en", "target": "de"})
    assert answer.json() == {"translatedText": "A\nB"}


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ({"source": "en", "target": "de"}, "Invalid request: missing q parameter"),
        ({"q": "a", "source": "xx", "target": "de"}, "xx is not supported"),
        ({"q": "a", "source": "de", "target": "en"}, "de is not supported"),
        ({"q": "a" * 101, "source": "en", "target": "de"}, "Invalid request: request (101) exceeds text limit (100)"),
        ({"q": ["a"] * 6, "source": "en", "target": "de"}, "Invalid request: request (6) exceeds text limit (5)"),
    ],
)
def test_refused(server, content, error):
    answer = server.post("/translate", content)
    assert (answer.status_code, answer.json()) == (400, {"error": error})


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"q": 1' + b"0" * 10_000 + b"}"]
)
def test_what_is_no_json_object(server, body):
    answer = server.client.post("/translate", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid JSON format"})


def test_a_form_that_is_none(server):
    answer = server.client.post("/translate", content=b"x", headers={"content-type": "multipart/form-data"})
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid form"})


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/translate", 405), ("PUT", "/detect", 405)]
)
def test_other_errors_have_the_same_form(server, method, path, status):
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]


def test_detect(server):
    found = server.post("/detect", {"q": "¿qué tiempo hace hoy en madrid?"}).json()
    assert found[0]["language"] == "es"
    found = server.post("/detect", {"q": "what is the weather like today"}).json()
    assert found[0]["language"] == "en"
    assert found[0]["confidence"] > 50
    assert [each["confidence"] for each in found] == sorted((each["confidence"] for each in found), reverse=True)
    answer = server.post("/detect", {})
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid request: missing q parameter"})
    assert server.post("/detect", {"q": "a" * 101}).status_code == 400


def test_languages(server):
    found = {each["code"]: each for each in server.client.get("/languages").json()}
    assert set(found) == {"en", "es", "zh-Hans", "ar"}
    assert found["en"]["name"] == "English"
    assert set(found["en"]["targets"]) == {"de", "es", "zh-Hans", "ar"}


def test_settings(server):
    found = server.client.get("/frontend/settings").json()
    assert (found["charLimit"], found["batchLimit"], found["keyRequired"]) == (100, 5, False)
    assert found["language"]["source"]["code"] == "auto"
    assert found["language"]["target"] == {"code": "es", "name": "Spanish"}


def test_health(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}


def test_text_that_utf_8_has_no_form_for(server):
    body = b'{"q": "a \\ud800 b", "source": "en", "target": "de"}'
    answer = server.client.post("/translate", content=body, headers={"content-type": "application/json"})
    assert answer.json() == {"translatedText": "A \ud800 B"}


def test_numbers_and_other_types_of_content(server):
    answer = server.client.post("/translate", content=b"q=a", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid request: missing q parameter"})


def test_a_client_from_elsewhere(server):
    api = pytest.importorskip("libretranslatepy").LibreTranslateAPI(server.url)
    assert api.translate("good morning", "en", "es") == "GOOD MORNING"
    assert api.detect("what is the weather like today")[0]["language"] == "en"
    assert {"code": "en", "name": "English"}.items() <= api.languages()[0].items()


def test_the_document_says_what_there_is(server):
    document = server.client.get("/openapi.json").json()
    assert {"/translate", "/detect", "/languages", "/frontend/settings", "/health", "/ready"} <= set(document["paths"])
    assert "422" not in str(document["paths"]["/translate"]["post"]["responses"])
    page = server.client.get("/docs").text
    assert "/static-offline-docs/swagger-ui-bundle.js" in page
    assert "cdn" not in page
    assert server.client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_not_ready():
    from nllb_prune.serving.http.app import make_app
    from tests.serving.http.servers import running

    async def never():
        import asyncio

        await asyncio.sleep(3600)

    with running(make_app(never), ready=False) as url:
        assert httpx.get(url + "/health", timeout=60).status_code == 200
        for answer in (httpx.get(url + "/ready", timeout=60), httpx.post(url + "/translate", json={}, timeout=60)):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json() == {"error": "The server is not ready yet; try again later"}
        assert httpx.get(url + "/metrics", timeout=60).status_code == 200
