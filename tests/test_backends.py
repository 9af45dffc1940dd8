"""Backends by name, and what is said where one is unknown or its library missing; this needs no fairseq2."""

import argparse
from importlib.metadata import PackageNotFoundError

import pytest

from nllb_prune import backends
from nllb_prune.backends import BACKENDS, named_backend
from nllb_prune.cli import _options, main
from nllb_prune.errors import UsageError
from nllb_prune.model import loading, source
from nllb_prune.on_fairseq2 import needed

HOW = "make an environment of its own for it (`make env-fairseq2` in a clone, or `pip install 'nllb-prune[fairseq2]'`"


@pytest.fixture
def without_fairseq2(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(needed, "version", missing)


def test_the_default_is_that_of_transformers():
    backend = named_backend()
    assert backend == named_backend("transformers")
    assert backend.name == backends.TRANSFORMERS == "transformers"
    assert backend.load_model is loading.load_model
    assert backend.load_facts is loading.load_facts
    assert backend.load_spec is loading.load_spec
    assert backend.load_tokenizer is source.load_tokenizer
    assert not backend.in_parts("mini")


def test_the_command_line_offers_all_of_them():
    assert _options.BACKENDS == BACKENDS == ("transformers", "fairseq2")


@pytest.mark.parametrize("name", ["", "jax", "Transformers", "fairseq"])
def test_an_unknown_one(name):
    with pytest.raises(UsageError) as error:
        named_backend(name)
    assert str(error.value) == f"`backend` must be one of transformers, fairseq2, but is {name} instead."


def test_a_missing_library(without_fairseq2):
    with pytest.raises(UsageError, match="The backend fairseq2 must be installed, but is not; ") as error:
        named_backend("fairseq2")
    assert HOW in str(error.value)
    assert "\n" not in str(error.value)


VERBS = {
    "calibrate": ("calibrate", "mini", "--output", "statistics.safetensors"),
    "evaluate": ("evaluate", "mini", "--output", "scores"),
    "translate": ("translate", "mini", "wake me up", "--source", "en", "--target", "de"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_say_in_one_line_that_it_is_missing(verb, without_fairseq2, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*VERBS[verb], "--backend", "fairseq2"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nllb-prune {verb}: The backend fairseq2 must be installed, but is not; {HOW}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_offer_what_there_is(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*VERBS[verb], "--backend", "jax"])
    assert ended.value.code == 2
    assert "invalid choice: 'jax' (choose from " in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["plan", "export", "serve", "inspect"])
def test_other_verbs_have_none(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "--backend" not in capsys.readouterr().out


def test_a_streamed_model_is_of_the_default(without_fairseq2):
    """Said before the library is looked for."""
    options = argparse.Namespace(backend="fairseq2", stream=True)
    with pytest.raises(UsageError, match="`--stream` must be left out with `--backend fairseq2`"):
        _options.backend_of(options)
    assert _options.backend_of(argparse.Namespace(backend="transformers", stream=True)).name == "transformers"


def test_requests_are_of_the_default(without_fairseq2, capsys, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"text": "wake me up", "source": "en", "target": "de"}\n')
    assert main(["translate", "mini", "--requests", str(path), "--backend", "fairseq2"]) == 1
    told = "nllb-prune translate: `--backend` must be transformers with `--requests`, but is fairseq2 instead.\n"
    assert capsys.readouterr().err == told
