"""The server as a person starts it: the console script, a socket, signals."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nllb_prune import MaskSet
from nllb_prune.cli import main
from nllb_prune.model.source import embedded_masks
from nllb_prune.serving.http.keys import Key, KeyFile, new_key
from tests.serving.http.servers import wait_until

httpx = pytest.importorskip("httpx")


class Started:
    def __init__(self, *options):
        command = [sys.executable, "-m", "nllb_prune", "serve", *map(str, options), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        wait_until(lambda: self.said("listening") or self.process.poll() is not None, seconds=300)
        assert self.said("listening"), self.lines
        self.url = re.search(r"http://\S+", self.said("listening"))[0].rstrip('",}')

    def said(self, word):
        return next((line for line in self.lines if word in line), None)

    def ready(self):
        wait_until(lambda: self.get("/ready").status_code == 200, seconds=300)
        return self

    def translate(self, q="wake me up at nine", source="en", target="de", **named):
        content = {"q": q, "source": source, "target": target, **named}
        return httpx.post(self.url + "/translate", json=content, timeout=60)

    def replica(self):
        return self.get("/v1/residency").json()["replicas"][0]

    def get(self, path):
        return httpx.get(self.url + path, timeout=60)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(90)
        self.reader.join()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A file of masks that tests may write to."""
    path = tmp_path_factory.mktemp("masks") / "masks.json"
    path.write_text(embedded_masks().read_text())
    return path


def test_a_server_from_start_to_end(masks):
    with Started("mini", "--masks", masks, "--languages", "eng_Latn,deu_Latn,spa_Latn", "--log", "json") as server:
        assert server.get("/health").json() == {"status": "ok"}
        server.ready()
        assert server.translate().json()["translatedText"]
        assert server.translate(target="ru").json() == {"error": "ru is not supported"}
        assert {each["code"] for each in server.get("/languages").json()} == {"en", "de", "es"}
        before = server.get("/v1/configurations").json()["masks"]
        assert before == MaskSet.load(embedded_masks()).signature

        masks.write_text("{}")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.said("nothing was changed"))
        assert str(masks) in server.said("nothing was changed")
        assert server.translate().status_code == 200

        content = json.loads(embedded_masks().read_text())
        content["masks"]["decoder"]["deu_Latn"] = content["masks"]["decoder"]["tur_Latn"]
        masks.write_text(json.dumps(content))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.said("masks and keys were read again"))
        after = server.get("/v1/configurations").json()["masks"]
        assert after == MaskSet.load(masks).signature != before
        masks.write_text(embedded_masks().read_text())

        content = ["set an alarm for nine"] * 20
        sentences = server.replica()["sentences"] + 8 * len(content)
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(server.translate, content, alternatives=3) for _ in range(8)]
            # All are in: a connection without a request yet is closed when the server ends.
            wait_until(lambda: server.replica()["sentences"] == sentences)
            assert server.end() == 0
            found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * 8
    assert all(len(answer.json()["translatedText"]) == len(content) for answer in found)
    lines = [json.loads(line) for line in server.lines]
    assert {"listening", "ready", "request"} <= {line["event"] for line in lines}
    assert "wake me up" not in "".join(server.lines)


def test_mini_alone_shows_kept_and_full():
    with Started("mini", "--quiet") as server:
        server.ready()
        content = {"q": "wake me up at nine", "source": "en", "target": "de"}
        kept, full = (
            httpx.post(server.url + "/v1/translate", json={**content, "experts": each}, timeout=60).json()["experts"]
            for each in ("kept", "all")
        )
        assert (kept["kept"], full["kept"], full["of"]) == (96, 384, 384)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with Started("mini") as again:
        assert again.ready().translate().status_code == 200


ROOT = Path(__file__).parents[2]
CURL = re.compile(r"^curl (?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_of_the_documentation(tmp_path):
    secret = new_key()
    KeyFile().add(Key.of(secret, name="admin", admin=True)).save(tmp_path / "keys.json")
    with Started("mini", "--keys", tmp_path / "keys.json", "--keys-optional", "--quiet") as server:
        server.ready()
        done = []
        for page in ("README.md", "docs/server.md"):
            for command in CURL.findall((ROOT / page).read_text()):
                here = command.replace("http://127.0.0.1:5000", server.url).replace("Bearer KEY", f"Bearer {secret}")
                done.append(
                    subprocess.run(here, shell=True, capture_output=True, text=True, timeout=60, check=True).stdout
                )
    assert len(done) >= 7
    for answer in done:
        if answer.startswith("event: part"):
            assert answer.count("event: part") == 2
            assert "event: done" in answer
        else:
            assert {"translatedText", "masks"} & set(json.loads(answer)), answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nothing-here",), "`model` must be"),
        (("mini", "--masks", "no-such-file.json"), "no-such-file.json"),
        (("mini", "--memory", "1MB"), "`memory` must be"),
        (("mini", "--languages", "eng_Latn"), "`languages` must be"),
        (("mini", "--pinned", "fra_Latn"), "`pinned` must be"),
        (("mini", "--keys", "no-such-file.json"), "no-such-file.json"),
        (("mini", "--host", "no.such.host.invalid"), "must be free to listen on"),
        (("mini", "--deadline", "0"), "`deadline` must be seconds"),
        (("mini", "--port", "70000"), "`port` must be from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capfd, options, message):
    assert main(["serve", *options, *(() if "--port" in options else ("--port", "0"))]) == 1
    *before, last = capfd.readouterr().err.strip().splitlines()
    assert last.startswith("nllb-prune serve: ")
    assert message in last
    assert all("listening" in line for line in before)  # it is said once


def test_a_port_that_is_taken(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "mini", "--port", str(port)]) == 1
    assert f"`127.0.0.1:{port}` must be free to listen on" in capfd.readouterr().err
