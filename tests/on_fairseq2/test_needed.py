"""What is missing for fairseq2 is said in one line, wherever this runs."""

import builtins
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.on_fairseq2 import needed
from nllb_prune.on_fairseq2.needed import VERIFIED, main, need_fairseq2

HOW = (
    "make an environment of its own for it (`make env-fairseq2` in a clone, or `pip install 'nllb-prune[fairseq2]'` "
    "into an empty one): fairseq2 0.8.1 needs torch 2.9.1 and transformers 4.57."
)


def installed(monkeypatch, version, *, error=None):
    """Let fairseq2 be of a version, or not there, and its import fail."""

    def found(name):
        assert name == "fairseq2"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    imported = builtins.__import__

    def importing(name, *arguments, **named):
        if name == "fairseq2" and error is not None:
            raise error
        return imported(name, *arguments, **named)

    monkeypatch.setattr(needed, "version", found)
    monkeypatch.setattr(builtins, "__import__", importing)


def test_it_is_not_there(monkeypatch):
    installed(monkeypatch, None)
    with pytest.raises(UsageError) as error:
        need_fairseq2()
    assert str(error.value) == f"The backend fairseq2 must be installed, but is not; {HOW}"


@pytest.mark.parametrize("version", ["0.8.0", "0.8.2", "0.8.1.dev3", "1.0"])
def test_it_is_another_version(version, monkeypatch):
    installed(monkeypatch, version)
    with pytest.raises(UsageError) as error:
        need_fairseq2()
    assert str(error.value) == f"fairseq2 must be 0.8.1, but is {version} instead; {HOW}"


def test_its_library_for_audio_is_not_there(monkeypatch):
    text = "libsndfile.so.1: cannot open shared object file:\nNo such file or directory"
    installed(monkeypatch, VERIFIED, error=OSError(text))
    with pytest.raises(UsageError) as error:
        need_fairseq2()
    assert str(error.value) == (
        "The library libsndfile must be on this machine for fairseq2, but is not; on Debian and Ubuntu: "
        "apt-get install libsndfile1"
    )


@pytest.mark.parametrize("kind", [ImportError, OSError, RuntimeError])
def test_it_does_not_load(kind, monkeypatch):
    installed(monkeypatch, VERIFIED, error=kind("fairseq2n is for\n\n  PyTorch 2.9.1 " + "x" * 500))
    with pytest.raises(UsageError) as error:
        need_fairseq2()
    text = str(error.value)
    assert text.startswith("fairseq2 0.8.1 must load here, but does not (fairseq2n is for PyTorch 2.9.1 xxx")
    assert text.endswith(f"xxx); {HOW}")
    assert len(text) < len(HOW) + 300


def test_the_command_fails_in_one_line(monkeypatch, capsys):
    installed(monkeypatch, None)
    assert main() == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"The backend fairseq2 must be installed, but is not; {HOW}\n"


def test_it_is_there(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fairseq2", needed)  # any module does
    installed(monkeypatch, VERIFIED)
    assert need_fairseq2() == VERIFIED
    assert main() == 0
    assert capsys.readouterr().out == "fairseq2 0.8.1\n"


@pytest.mark.fairseq2
def test_it_is_there_in_its_environment():
    assert need_fairseq2() == VERIFIED == importlib.metadata.version("fairseq2")


def test_the_version_is_that_of_the_extra():
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["fairseq2"] == [f"fairseq2=={VERIFIED}"]
    assert f"fairseq2=={VERIFIED}" in (root / "requirements-fairseq2.lock").read_text().split()
