import json

import pytest

from tests.serving.http.servers import LANGUAGES, Upper, serving

ASK = {"q": "good morning all", "source": "en", "target": "de"}


@pytest.fixture(scope="module")
def server():
    with serving(Upper()) as running:
        yield running


def events(text):
    for event in text.strip().split("\n\n"):
        name, data = event.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_translate_tells_what_went_into_it(server):
    found = server.post("/v1/translate", {**ASK, "alternatives": 1}).json()
    assert found["translatedText"] == "GOOD MORNING ALL"
    assert found["alternatives"] == ["GOOD MORNING ALL!"]
    assert (found["source"], found["target"], found["detectedLanguage"]) == ("eng_Latn", "deu_Latn", None)
    assert (found["experts"]["choice"], found["experts"]["kept"], found["experts"]["of"]) == ("kept", 8, 32)
    assert found["experts"]["bytes"] == 200
    assert found["experts"]["stacks"][1] == {
        "stack": "decoder",
        "key": "deu_Latn",
        "layers": [1, 3],
        "experts": 8,
        "kept": [[0, 1], [0, 1]],
    }
    assert found["work"]["sourceTokens"] == 16
    assert found["work"]["seconds"] >= 0


def test_all_experts(server):
    found = server.post("/v1/translate", {**ASK, "experts": "all"}).json()
    assert (found["experts"]["choice"], found["experts"]["kept"]) == ("all", 32)


def test_auto_says_what_it_found(server):
    found = server.post("/v1/translate", {**ASK, "q": "buenos días, ¿cómo estás?", "source": "auto"}).json()
    assert found["detectedLanguage"]["language"] == "es"
    assert found["source"] == "spa_Latn"


def test_nothing_to_do_uses_no_experts(server):
    found = server.post("/v1/translate", {**ASK, "target": "en"}).json()
    assert found["translatedText"] == "good morning all"
    assert found["experts"] == {"choice": "kept", "kept": 0, "of": 0, "bytes": 0, "stacks": []}


def test_a_stream(server):
    answer = server.post("/v1/stream", ASK)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, (last, whole) = events(answer.text)
    assert [name for name, _ in parts] == ["part"] * 3
    assert "".join(part["text"] for _, part in parts) == "GOOD MORNING ALL"
    assert last == "done"
    expected = server.post("/v1/translate", ASK).json()
    del whole["work"]["seconds"], expected["work"]["seconds"]
    assert whole == expected


@pytest.mark.parametrize("change", [{"q": "<b>good</b> day", "format": "html"}, {"target": "en"}])
def test_a_stream_of_what_cannot_be_streamed(server, change):
    (first, part), (last, whole) = events(server.post("/v1/stream", {**ASK, **change}).text)
    assert (first, last) == ("part", "done")
    assert part["text"] == whole["translatedText"]


def test_a_stream_that_is_refused_never_begins(server):
    answer = server.post("/v1/stream", {**ASK, "source": "xx"})
    assert (answer.status_code, answer.json()) == (400, {"error": "xx is not supported"})


def test_a_fault_in_a_stream():
    backend = Upper()
    backend.error = RuntimeError("secret")
    with serving(backend) as server:
        answer = server.post("/v1/stream", ASK)
        *_, (last, content) = events(answer.text)
        assert last == "error"
        assert "secret" not in answer.text
        assert content["error"].startswith("Internal error")


def test_configurations(server):
    found = server.client.get("/v1/configurations").json()
    assert (found["model"], found["full"], found["beams"]) == ("upper", True, 4)
    spoken = {each["code"]: each for each in found["languages"]}
    assert set(spoken) == set(LANGUAGES)
    assert spoken["deu_Latn"] == {"code": "deu_Latn", "iso": "de", "name": "German", "source": False, "target": True}
    assert found["sides"][0] == {
        "stack": "decoder",
        "key": "eng_Latn",
        "kept": 4,
        "of": 16,
        "bytes": 100,
        "resident": True,
    }
    assert found["memory"] == {"fixed": 10, "experts": 20, "working": None, "total": None, "paged": False}


def test_residency(server):
    [found] = server.client.get("/v1/residency").json()["replicas"]
    assert found["name"] == "upper"
    assert found["resident"] == ["decoder.deu_Latn"]


def test_the_page_is_there(server):
    answer = server.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert server.client.get("/static/nothing.js").status_code == 404
