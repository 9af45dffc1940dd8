"""`nllb-prune keys`: each key is seen once."""

import json
import stat

import pytest

from nllb_prune.serving.http.keys import KeyFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def test_add(cli, path):
    status, out, err = cli("keys", "add", path, "newsroom", "--rate", 120)
    assert status == 0
    assert err == f"The key of newsroom; note it now, as {path} has only its hash.\n"
    secret = out.removesuffix("\n")
    found = KeyFile.load(path).find(secret)
    assert (found.name, found.rate, found.admin) == ("newsroom", 120, False)
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_list(works, path):
    secrets = [works("keys", "add", path, "a", "--admin"), works("keys", "add", path, "Büro 2", "--rate", 5)]
    lines = works("keys", "list", path).splitlines()
    day = KeyFile.load(path).keys[0].created
    assert lines[0].split() == ["name", "rate", "admin", "created"]
    assert [line.split() for line in lines[2:]] == [["a", "yes", day], ["Büro", "2", "5", day]]
    shown = works("keys", "list", path, "--json")
    assert json.loads(shown) == [
        {"name": "a", "rate": None, "admin": True, "created": day},
        {"name": "Büro 2", "rate": 5, "admin": False, "created": day},
    ]
    assert not any(secret.strip() in shown for secret in secrets)


def test_remove(works, path):
    gone, stays = works("keys", "add", path, "a").strip(), works("keys", "add", path, "b").strip()
    assert works("keys", "remove", path, "a") == f"{path}: 1 key\n"
    keys = KeyFile.load(path)
    assert keys.find(gone) is None
    assert keys.find(stays).name == "b"
    assert works("keys", "remove", path, "b") == f"{path}: 0 keys\n"
    assert works("keys", "list", path, "--json") == "[]\n"


def test_one_line_for_what_is_wrong(works, fails, path, tmp_path):
    assert "there is no such file" in fails("keys", "list", path)
    works("keys", "add", path, "a")
    before = path.read_bytes()
    assert "a key of a already" in fails("keys", "add", path, "a")
    assert "but is 'b' instead" in fails("keys", "remove", path, "b")
    assert "`name` must be 1 to 64" in fails("keys", "add", path, "")
    assert path.read_bytes() == before
    assert "is a folder" in fails("keys", "add", tmp_path, "a")


@pytest.mark.parametrize("arguments", [(), ("add",), ("add", "f"), ("add", "f", "n", "--rate", "0"), ("list",)])
def test_wrong_usage(cli, arguments):
    assert cli("keys", *arguments)[0] == 2
