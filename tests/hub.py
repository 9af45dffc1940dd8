"""A small server that answers as the Hub does, for tests."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as the Hub does: what its interface tells of a model, and files, whole or from a byte on."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root, self.scratch = root, root
        self.forget()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def forget(self):
        self.asked = []  # (weight file, first byte), each time that its content was asked for
        self.present = []  # weight files that the client had on its disk at that time
        self.cut = {}  # file -> bytes after which the connection breaks; asked for again, it is lost
        self.listings = 0  # times that sizes were asked for
        self.lost = set()  # files that are listed, and not given out


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *parts):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            owner, model, kind, revision = (*path.removeprefix("/api/models/").split("/"), "revision", "main")[:4]
            self.send_listing(self.server.root / owner / model, kind, revision)
        else:
            owner, model, _, _, file = path[1:].split("/")
            self.send_file(self.server.root / owner / model / file)

    def send_listing(self, folder, kind, revision):
        if not folder.is_dir() or revision not in ("main", COMMIT):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound" if folder.is_dir() else "RepoNotFound"})
        self.server.listings += "blobs=" in self.path
        files = [(path.name, path.stat().st_size, digest(path)) for path in sorted(folder.iterdir())]
        if kind == "tree":
            content = [{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in files]
        else:
            siblings = [{"rfilename": name, "size": size, "blobId": oid} for name, size, oid in files]
            content = {"id": f"somebody/{folder.name}", "sha": COMMIT, "siblings": siblings}
        return self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send_file(self, path):
        hub, reads = self.server, self.command == "GET"
        if not path.is_file() or path.name in hub.lost:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content, first = path.read_bytes(), int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        if reads and is_weights(path):
            hub.asked.append((path.name, first))
            hub.present.append([other.name for other in hub.scratch.rglob("*") if is_weights(other)])
        fields = {"ETag": f'"{digest(path)}"', "X-Repo-Commit": COMMIT}
        if first:
            fields["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = hub.cut.pop(path.name, None) if reads else None
        if cut is not None:
            hub.lost.add(path.name)
        return self.send(206 if first else 200, content[first:], fields, cut=cut)

    def send(self, status, content, fields, *, cut=None):
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        self.close_connection = cut is not None


def digest(path):
    return sha256(path.read_bytes()).hexdigest()


def is_weights(path):
    return path.suffix in (".safetensors", ".bin") and path.is_file()


def client_environment(hub, home):
    """Return the environment of a process that takes the server for the Hub."""
    host, port = hub.server_address
    settings = {
        "HF_ENDPOINT": f"http://{host}:{port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return os.environ | settings


RUNNER = """
import contextlib, json, os, sys
import nllb_prune.exporting.export
from nllb_prune.cli import main

with contextlib.redirect_stdout(None):
    main(["inspect", "mini"])  # imports what every verb does, with the settings of a command line
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        for number, path in ((1, job["out"]), (2, job["err"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.exit(main(job["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """Runs commands that take the server for the Hub, each in a fork of one process, so that imports are paid once."""

    def __init__(self, hub, folder):
        self.folder, self.home = folder, folder / "home"
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            env=client_environment(hub, self.home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, arguments):
        """Return the exit status, standard output and standard error of a command."""
        paths = {name: str(self.folder / name) for name in ("out", "err")}
        self.process.stdin.write(json.dumps({"arguments": list(map(str, arguments)), **paths}) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, *(Path(path).read_text() for path in paths.values())

    def close(self):
        self.process.kill()
        self.process.communicate()
