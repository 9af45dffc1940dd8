import asyncio
import contextlib
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from nllb_prune.errors import Unavailable
from nllb_prune.serving.http.keys import Key, KeyFile, new_key
from tests.serving.http.servers import Refusing, Upper, serving, wait_until


def test_bodies_have_a_limit():
    with serving(Upper(), body=1000) as server:
        answer = server.translate("a" * 1000)
        assert (answer.status_code, answer.json()) == (413, {"error": "Request body must be at most 1000 bytes"})
        chunks = (b"a" * 100 for _ in range(100))  # whose length nobody says beforehand
        answer = server.client.post("/translate", content=chunks, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert server.translate().status_code == 200


def test_bodies_must_arrive():
    with serving(Upper(), body_seconds=0.2) as server, _connected(server) as connection:
        connection.sendall(
            b"POST /translate HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nContent-Type: application/json\r\n\r\n{"
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_deadline():
    backend = Upper(seconds=30)
    with serving(backend, deadline=0.2) as server:
        answer = server.translate()
        assert answer.status_code == 503
        assert "within 0.2 seconds" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1
        wait_until(lambda: backend.cancelled == 1)


def test_a_deadline_of_a_stream():
    backend = Upper(seconds=0.2)
    with serving(backend, deadline=3) as server:
        answer = server.post("/v1/stream", {"q": " ".join("a" * 40), "source": "en", "target": "de"})
        assert answer.status_code == 200
        assert answer.text.startswith('event: part\ndata: {"text":"A"}')
        assert answer.text.rstrip().splitlines()[-2] == "event: error"
        wait_until(lambda: backend.cancelled == 1)


def test_clients_that_go_take_their_work_with_them():
    backend = Upper(seconds=30)
    with serving(backend) as server:
        body = b'{"q": "a b", "source": "en", "target": "de"}'
        for path in (b"/translate", b"/v1/translate"):
            with _connected(server) as connection:
                connection.sendall(_head(path, body) + body)
                wait_until(lambda: backend.asks)
            backend.asks.clear()
        wait_until(lambda: backend.cancelled == 2)
        backend.seconds = 0.3
        body = body.replace(b"a b", b" ".join([b"a"] * 60))
        with _connected(server) as connection:
            connection.sendall(_head(b"/v1/stream", body) + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: backend.cancelled == 3)


class Held(Upper):
    """Translates nothing until it is let go."""

    def __init__(self):
        super().__init__()
        self.held, self.let_go = 0, False

    async def translate(self, ask):
        self.held += 1
        while not self.let_go:
            await asyncio.sleep(0.01)
        return await super().translate(ask)


def test_too_much_work_is_refused_at_once_and_taken_again_afterwards():
    backend = Held()
    with serving(backend, longest_wait=0.5) as server, ThreadPoolExecutor(40) as clients:
        answers = [clients.submit(server.translate, "a" * 1000) for _ in range(40)]
        wait_until(lambda: backend.held + sum(answer.done() for answer in answers) == 40)
        backend.let_go = True
        refused = [answer for answer in (each.result() for each in answers) if answer.status_code == 503]
        assert 0 < len(refused) < 40
        assert refused[0].json() == {"error": "The server is too busy; try again later"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert server.translate("a" * 100).status_code == 200


def test_rates():
    with serving(Upper(), rate=3) as server:
        statuses = [server.translate().status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        answer = server.translate()
        assert answer.json() == {"error": "Slowdown: 3 per 1 minute"}
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert server.client.get("/languages").status_code == 200


def test_what_is_refused_counts_once():
    with serving(Upper(), rate=3, texts=5) as server:
        assert server.translate(["a"] * 1000).status_code == 400
        assert server.translate(["a", "b"]).status_code == 200


def test_pages_of_other_sites():
    elsewhere = {"sec-fetch-site": "cross-site", "origin": "https://example.org"}
    content = {"q": "a", "source": "en", "target": "de"}
    with serving(Upper()) as server:
        answer = server.client.post("/translate", data=content, headers=elsewhere)
        assert (answer.status_code, answer.json()) == (
            403,
            {"error": "Pages of other web sites may not use this server"},
        )
        assert (
            server.client.post("/translate", data=content, headers={"sec-fetch-site": "same-origin"}).status_code == 200
        )
    with serving(Upper(), origins=("https://example.org",)) as server:
        answer = server.client.post("/translate", data=content, headers=elsewhere)
        assert answer.status_code == 200
        answer = server.client.post("/translate", content=b"a" * 3_000_000, headers=elsewhere)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (413, "https://example.org")


def test_lists_count_for_each_text():
    with serving(Upper(), rate=3) as server:
        assert server.translate(["a", "b"]).status_code == 200
        assert server.translate(["a", "b"]).status_code == 429  # after the first of them was counted
        assert server.translate("a").status_code == 429


@pytest.fixture
def keys(tmp_path):
    """(file, key of a user with a rate of 2, key of an administrator)"""
    user, admin = new_key(), new_key()
    file = KeyFile().add(Key.of(user, name="user", rate=2)).add(Key.of(admin, name="admin", admin=True))
    file.save(tmp_path / "keys.json")
    return tmp_path / "keys.json", user, admin


def test_keys(keys):
    path, user, admin = keys
    with serving(Upper(), keys=path) as server:
        answer = server.translate()
        assert (answer.status_code, answer.json()) == (
            403,
            {"error": "Please contact the server operator to get an API key"},
        )
        answer = server.translate(api_key="wrong")
        assert (answer.status_code, answer.json()) == (403, {"error": "Invalid API key"})
        assert server.translate(api_key=5).status_code == 400
        assert server.translate(api_key=user).status_code == 200
        header = {"authorization": f"Bearer {user}"}
        assert (
            server.client.post(
                "/translate", json={"q": "a", "source": "en", "target": "de"}, headers=header
            ).status_code
            == 200
        )
        assert server.translate(api_key=user).status_code == 429
        assert [server.translate(api_key=admin).status_code for _ in range(5)] == [200] * 5
        assert server.client.get("/frontend/settings").json()["keyRequired"]


def test_optional_keys(keys):
    path, user, _ = keys
    with serving(Upper(), keys=path, keys_required=False, rate=1) as server:
        assert [server.translate().status_code for _ in range(2)] == [200, 429]
        assert server.translate(api_key=user).status_code == 200
        assert server.translate(api_key="guess").status_code == 429


def test_reload(keys):
    path, user, admin = keys
    with serving(Upper(), keys=path) as server:
        assert server.post("/v1/admin/reload", {}).status_code == 403
        assert server.post("/v1/admin/reload", {}, headers={"authorization": f"Bearer {user}"}).status_code == 403
        answer = server.post("/v1/admin/reload", {}, headers={"authorization": f"Bearer {admin}"})
        assert answer.json() == {"masks": "ba9876543210"}
        assert server.client.get("/v1/configurations").json()["masks"] == "ba9876543210"
        KeyFile.load(path).remove("user").save(path)
        server.post("/v1/admin/reload", {}, headers={"authorization": f"Bearer {admin}"})
        assert server.translate(api_key=user).status_code == 403


def test_keys_that_are_not_right_keep_masks_as_they_are(keys):
    path, user, admin = keys
    backend = Upper()
    with serving(backend, keys=path) as server:
        path.write_text("{}")
        answer = server.post("/v1/admin/reload", {}, headers={"authorization": f"Bearer {admin}"})
        assert answer.status_code == 400
        assert str(path) in answer.json()["error"]
        assert backend.masks == "0123456789ab"
        assert server.translate(api_key=user).status_code == 200


def test_keys_are_read_again_when_their_file_changes(keys):
    path, user, _ = keys
    with serving(Upper(), keys=path, refresh=0.05) as server:
        assert server.translate(api_key=user).status_code == 200
        KeyFile.load(path).remove("user").save(path)
        wait_until(lambda: server.translate(api_key=user).status_code == 403)


def test_a_reload_that_cannot_be_now(keys):
    path, _, admin = keys
    backend = Upper()
    with serving(backend, keys=path) as server:
        backend.error = Unavailable("The translator must be open.")
        answer = server.post("/v1/admin/reload", {}, headers={"authorization": f"Bearer {admin}"})
        assert answer.status_code == 503


def test_a_reload_of_what_is_not_right(keys):
    path, _, admin = keys
    with serving(Refusing(), keys=path) as server:
        answer = server.post("/v1/admin/reload", {}, headers={"authorization": f"Bearer {admin}"})
        assert (answer.status_code, answer.json()) == (400, {"error": "`masks` must be right, but are not."})


def test_no_keys_no_administrator():
    with serving(Upper()) as server:
        assert server.post("/v1/admin/reload", {}).status_code == 403


def test_what_cannot_be_had_now():
    backend = Upper()
    backend.error = Unavailable("`expert 5` must be read, but cannot be.")
    with serving(backend) as server:
        answer = server.translate()
        assert (answer.status_code, answer.json()) == (503, {"error": "`expert 5` must be read, but cannot be."})


def test_a_fault_tells_nothing(caplog):
    backend = Upper()
    backend.error = RuntimeError("secret")
    with serving(backend) as server, caplog.at_level(logging.INFO, "nllb_prune.server"):
        answer = server.translate("private text", source="en")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] in answer.json()["error"]
        assert "private text" not in caplog.text
        backend.error = None
        assert server.translate().status_code == 200
    [fault] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert fault.request == answer.headers["x-request-id"]
    assert fault.exc_info


def test_requests_have_names_and_leave_a_line(caplog):
    with serving(Upper()) as server, caplog.at_level(logging.INFO, "nllb_prune.server"):
        answer = server.post(
            "/translate", {"q": "private text", "source": "en", "target": "de"}, headers={"x-request-id": "abc-1"}
        )
        assert answer.headers["x-request-id"] == "abc-1"
        answer = server.translate()
        assert len(answer.headers["x-request-id"]) == 32
        answer = server.client.get("/health", headers={"x-request-id": "a b\tc" * 30})
        assert len(answer.headers["x-request-id"]) == 32
    [record] = [record for record in caplog.records if getattr(record, "request", "") == "abc-1"]
    assert (record.route, record.status, record.source, record.target) == ("/translate", 200, "eng_Latn", "deu_Latn")
    assert (record.texts, record.characters) == (1, 12)
    assert "private text" not in caplog.text


def test_other_sites_are_kept_out_unless_let_in():
    origin = {"origin": "https://example.org"}
    with serving(Upper()) as server:
        assert "access-control-allow-origin" not in server.client.get("/languages", headers=origin).headers
    with serving(Upper(), origins=("https://example.org",)) as server:
        found = server.client.get("/languages", headers=origin).headers
        assert found["access-control-allow-origin"] == "https://example.org"


def test_a_stream_whose_client_goes_before_it_begins():
    backend = Upper(seconds=30)
    body = b'{"q": "a b", "source": "en", "target": "de"}'
    with serving(backend) as server:
        with _connected(server) as connection:
            connection.sendall(_head(b"/v1/stream", body) + body)
            wait_until(lambda: backend.asks)
        wait_until(lambda: backend.cancelled == 1)


def test_large_requests_leave_room_for_others():
    backend = Upper(seconds=0.05)
    with serving(backend, longest_wait=0.5) as server, ThreadPoolExecutor(1) as client:
        large = client.submit(server.translate, ["a" * 1000] * 100)
        wait_until(lambda: len(backend.asks) > 1)
        began = time.monotonic()
        assert server.translate("small").status_code == 200
        assert time.monotonic() - began < 5
        assert not large.done()
        backend.seconds = 0
        assert large.result().json()["translatedText"] == ["A" * 1000] * 100
    assert max(sum(map(len, ask.texts)) for ask in backend.asks) <= 8000


def test_headers_have_a_limit():
    with serving(Upper()) as server, _connected(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"X-A: " + b"a" * 10_000 + b"\r\n")
        with contextlib.suppress(OSError):
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert server.client.get("/health").status_code == 200


def test_what_ends_gives_requests_up_in_time():
    backend = Upper(seconds=60)
    answers, content = [], {"q": "good morning", "source": "en", "target": "de"}
    with serving(backend, drain=0.3) as server:
        client = threading.Thread(
            target=lambda: answers.append(httpx.post(server.url + "/translate", json=content, timeout=60))
        )
        client.start()
        wait_until(lambda: backend.asks)
        began = time.monotonic()
    client.join()
    assert time.monotonic() - began < 5
    assert (answers[0].status_code, answers[0].json()) == (503, {"error": "The server is closing; try again later"})


def test_what_ends_waits_for_no_more_than_a_moment_for_requests():
    body = b'{"q": "a b", "source": "en", "target": "de"}'
    with serving(Upper()) as server:
        under_way = server.state.metrics.under_way._value.get
        wait_until(lambda: not under_way())  # what asked whether it is ready has left
        connection = _connected(server)
        connection.sendall(_head(b"/translate", body) + body[:5])
        wait_until(under_way)  # a connection without a request yet is closed when the server ends
        began = time.monotonic()
    assert time.monotonic() - began < 5
    with connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 503")


def test_a_backend_that_ends_ends_the_server():
    backend, told = Upper(), []
    with serving(backend, refresh=0.05, failed=told.append) as server:
        backend.open = False
        wait_until(lambda: told)
        assert server.translate().status_code == 503
    assert isinstance(told[0], Unavailable)


def test_metrics():
    with serving(Upper()) as server:
        server.translate(["a", "b"])
        server.translate("a", source="xx")
        server.client.get("/nowhere/at/all")
        text = server.client.get("/metrics").text
    assert 'nllb_prune_requests_total{route="/translate",status="200"} 1.0' in text
    assert 'nllb_prune_requests_total{route="/translate",status="400"} 1.0' in text
    assert 'nllb_prune_requests_total{route="other",status="404"} 1.0' in text
    assert 'nllb_prune_texts_total{experts="kept"} 2.0' in text
    assert 'nllb_prune_language_texts_total{language="deu_Latn",side="target"} 2.0' in text
    assert 'nllb_prune_stage_seconds_count{stage="waiting"} 2.0' in text
    assert 'nllb_prune_rows_total{replica="upper"} 6.0' in text
    assert 'nllb_prune_resident{language="deu_Latn",replica="upper",stack="decoder"} 1.0' in text
    assert 'nllb_prune_served_info{masks="0123456789ab",model="upper",version=' in text


def test_many_at_once():
    with serving(Upper(seconds=0.05)) as server, ThreadPoolExecutor(32) as clients:
        found = list(clients.map(lambda n: server.translate(f"text {n}").json()["translatedText"], range(200)))
    assert found == [f"TEXT {n}" for n in range(200)]


def test_what_ends_lets_requests_finish():
    backend = Upper(seconds=0.5)
    answers, content = [], {"q": "good morning", "source": "en", "target": "de"}
    with serving(backend) as server:
        client = threading.Thread(
            target=lambda: answers.append(httpx.post(server.url + "/translate", json=content, timeout=60))
        )
        client.start()
        wait_until(lambda: backend.asks)
    client.join()
    assert answers[0].json() == {"translatedText": "GOOD MORNING"}
    assert backend.closed is False


def _connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def _head(path, body):
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
        path,
        len(body),
    )
