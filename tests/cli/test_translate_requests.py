"""`translate --requests`: any languages at once, and clear words for wrong lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nllb_prune.cli import main

REQUESTS = [
    {"text": "Wake me up at nine.\n\nTurn off the lights.", "source": "en", "target": "de"},
    {"text": "guten morgen", "source": "deu_Latn", "target": "spa_Latn"},
    {"text": "…", "source": "zh", "target": "tr"},
]


@pytest.fixture
def requests(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in REQUESTS) + "\n", encoding="utf-8")
    return path


def test_the_console_script(requests):
    script = Path(sys.executable).with_name("nllb-prune")
    done = subprocess.run(
        [script, "translate", "mini", "--requests", requests, "--memory", "120MB"], capture_output=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert [{field: each[field] for field in ("text", "source", "target")} for each in found] == REQUESTS
    first, second = found[0]["translation"].split("\n\n")
    assert first
    assert second
    assert found[2]["translation"] == "…"
    assert done.stderr == b""


def test_sentences_and_alternatives_to_a_file(requests, tmp_path):
    output = tmp_path / "out.jsonl"
    arguments = ["--beams", "3", "--alternatives", "2", "--json", "--output", str(output)]
    assert main(["translate", "mini", "--requests", str(requests), *arguments]) == 0
    first = json.loads(output.read_text().splitlines()[0])
    assert len(first["sentences"]) == 2
    assert len(first["sentences"][0]) == 2
    assert first["alternatives"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}', "Line 1 of `{path}` must have the strings text, source, target"),
        ("[1]", "Line 1 of `{path}` must have the strings"),
        ('{"text": "a", "source": "en", "target": "de"}\n{', "Line 2 of `{path}` must be a JSON object"),
        ('{"text": "a", "source": "en", "target": "klingon"}', "`language` must be"),
        ('{"text": "a", "source": "en", "target": "fra_Latn"}', "`languages` must be of the model's"),
        ('{"text": "a", "source": "en", "target": "en"}', "`target` must be a language that eng_Latn is"),
    ],
)
def test_wrong_lines(tmp_path, capsys, content, words):
    path = tmp_path / "requests.jsonl"
    path.write_text(content)
    assert main(["translate", "mini", "--requests", str(path)]) == 1
    error = capsys.readouterr().err
    assert words.format(path=path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hello", "--requests", "r"], "TEXT must be left out with `--requests`"),
        (["--requests", "r", "--source", "en"], "`--source` must be left out"),
        (["--requests", "r"], "`r` must be JSON lines in UTF-8"),
        (["hello", "--source", "en", "--target", "de", "--memory", "1GB"], "`--memory` must come with `--requests`"),
    ],
)
def test_wrong_options(capsys, arguments, words):
    assert main(["translate", "mini", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_too_little_memory(requests, capsys):
    assert main(["translate", "mini", "--requests", str(requests), "--memory", "1MB"]) == 1
    assert "`memory` must be" in capsys.readouterr().err
