"""What nobody would send: from the document that the server has of itself, and odd text."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.http.servers import Upper, serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


def test_the_document_holds_against_any_request(tmp_path):
    script = Path(sys.executable).with_name("schemathesis")
    if not script.exists():
        pytest.skip("schemathesis is not installed; `pip install 'nllb-prune[dev]'` brings it")
    with serving(Upper(), characters=200, texts=8) as server:
        done = subprocess.run(
            [
                script,
                "run",
                server.url + "/openapi.json",
                f"--checks={','.join(CHECKS)}",
                "--phases=examples,coverage,fuzzing",
                "--max-examples=40",
                "--seed=1",
                "--no-color",
                "--generation-database=none",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
