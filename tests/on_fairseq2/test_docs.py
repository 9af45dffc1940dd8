"""The commands and programs of docs/fairseq2.md and of the README run as they are written, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fairseq2

ROOT = Path(__file__).parents[2]
README = re.search(r"\n### In fairseq2\n(.*?)\n### ", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
SETS_UP = "make env-fairseq2"


def run_blocks(text, folder):
    """Run the blocks of a text in a new home, and return what each printed."""
    (folder / "home").mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "FAIRSEQ2_"))},
        "HOME": str(folder / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    printed = []
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL):
        if SETS_UP in block:
            continue
        command = ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        printed.append(done.stdout)
    return printed


def test_the_readme(tmp_path):
    loaded, verbs = run_blocks(README, tmp_path)
    assert loaded == ""
    assert "weck mich um neun uhr\n" in verbs
    assert re.search(r"^dense +100.0%", verbs, flags=re.MULTILINE)


def test_the_page(tmp_path):
    generated, exported, loaded, masked, verbs, back = run_blocks((ROOT / "docs" / "fairseq2.md").read_text(), tmp_path)
    assert generated == "weck mich um neun uhr\n"
    assert exported.endswith("/.config/fairseq2/assets/nllb-eng-deu.yaml: nllb-eng-deu\n")
    assert loaded == masked == back == ""
    assert verbs.startswith("weck mich um neun uhr\n")
    assert re.search(r"^dense +100.0%", verbs, flags=re.MULTILINE)
    assert (tmp_path / "mini-again" / "model.safetensors").exists()
