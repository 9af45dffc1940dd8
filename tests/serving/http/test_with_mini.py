"""The server on a real model."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from nllb_prune import Translator, translate
from nllb_prune.serving.http.backend import LocalBackend
from tests.serving.http.servers import serving, wait_until


@pytest.fixture(scope="module")
def server(masks, tmp_path_factory):
    path = tmp_path_factory.mktemp("masks") / "masks.json"
    masks.save(path)
    with serving(
        LocalBackend(Translator("mini", path, full=True), masks=path), characters=2_000_000, body=9_000_000
    ) as running:
        yield running


def test_answers_are_those_found_offline(server, requests, alone):
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda each: server.translate(each[0], *each[1:]).json()["translatedText"], requests))
    assert found == [each[0].text for each in alone]


def test_lists(server, requests, alone):
    for source, target in {each[1:] for each in requests[:40]}:
        here = [
            (each[0], best[0].text) for each, best in zip(requests, alone, strict=True) if each[1:] == (source, target)
        ]
        texts, expected = zip(*here, strict=True)
        assert server.translate(list(texts), source, target).json()["translatedText"] == list(expected)


def test_the_full_model(server, model, tokenizer, requests):
    for text, source, target in requests[:10]:
        content = {"q": text, "source": source, "target": target}
        kept, full = (
            server.post("/v1/translate", {**content, "experts": experts}).json() for experts in ("kept", "all")
        )
        [expected] = translate(model, tokenizer, [text], source=source, target=target)
        assert full["translatedText"] == expected
        assert full["experts"]["kept"] == 4 * kept["experts"]["kept"]
        assert [stack["key"] for stack in kept["experts"]["stacks"]] == [source, target]


def test_a_stream_is_the_translation(server):
    text = "Wake me up at nine. Turn off the lights! What is the weather like?"
    content = {"q": text, "source": "en", "target": "es"}
    streamed = server.post("/v1/stream", content).text
    assert streamed.count("event: part") == 3
    whole = server.post("/v1/translate", content).json()["translatedText"]
    assert f'"translatedText":"{whole}"' in streamed


ODD = {
    "space": " \t\n ",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029",
    "surrogates": "wake \ud83d me \udc00 up",
    "rtl": "\u202eأيقظني\u202c في التاسعة \u200f",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 wake me up 🎉" * 20,
    "mixed": "wake меня up 九点 في sabah",
    "html": "<p>wake <b>me</b></p><script>alert(1)</script>&nbsp;&lt;",
    "zero width": "wa\u200bke\ufeff me\u00ad up",
    "combining": "e" + "\u0301" * 500,
    "one word": "a" * 5000,
    "marks": "?!." * 500,
    "null": "wake\0me",
    "tokens": "</s> <unk> deu_Latn <s> wake me up",
    "private": "\ue000\U0010ffff\ufdd0",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("html", [False, True])
def test_odd_text(server, name, html):
    answer = server.client.post(
        "/translate",
        content=_json(ODD[name], "auto" if name in ("mixed", "space") else "en", "html" if html else "text"),
        headers={"content-type": "application/json"},
        timeout=120,
    )
    assert answer.status_code == 200
    assert isinstance(answer.json()["translatedText"], str)
    if name in ("space", "marks"):
        assert answer.json()["translatedText"] == ODD[name]


def _json(q, source, form):
    return json.dumps({"q": q, "source": source, "target": "de", "format": form}).encode()


def test_a_megabyte_is_given_up_when_its_client_goes(server):
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/translate", json={"q": "wake me up. " * 90_000, "source": "en", "target": "de"}, timeout=3)
    wait_until(lambda: server.client.get("/v1/residency").json()["replicas"][0]["waiting"] == 0)
    wait_until(lambda: server.translate("wake me up").status_code == 200)  # 503 until its place is free


def test_reload_under_load(server, requests):
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(server.translate, *each) for each in requests[:80]]
        asyncio.run(server.state.served.backend.reload())
        assert {answer.result().status_code for answer in answers} == {200}
