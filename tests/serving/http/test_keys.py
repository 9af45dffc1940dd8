"""A file of API keys that knows a key when it sees one, and has none itself."""

import copy
import json
import os
import stat

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.serving.http.keys import Key, KeyFile, new_key

RIGHT = {"name": "a", "sha256": "0" * 64, "rate": None, "admin": False, "created": "2026-01-31"}


def written(path, *keys, **changed):
    path.write_text(json.dumps({"format": "nllb-prune/keys", "version": 1, "keys": list(keys)} | changed))
    return path


def test_keys_are_different_and_tell_what_they_are():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("nllb_") and len(key) == 5 + 43 for key in keys)


def test_a_key_is_found_and_nothing_else():
    secrets = [new_key() for _ in range(3)]
    keys = KeyFile(tuple(Key.of(secret, name=str(number), rate=number + 1) for number, secret in enumerate(secrets)))
    assert [keys.find(secret).name for secret in secrets] == ["0", "1", "2"]
    for wrong in ("", secrets[0][:-1], f"{secrets[0]} ", secrets[0].lower(), keys.keys[0].sha256, "é", "\ud800", "\0"):
        assert keys.find(wrong) is None
    assert KeyFile().find(secrets[0]) is None


def test_a_file_comes_back_and_has_no_key(tmp_path):
    first, second = new_key(), new_key()
    keys = KeyFile().add(Key.of(first, name="a", rate=3)).add(Key.of(second, name="Büro 2", admin=True))
    keys.save(tmp_path / "keys.json")
    assert KeyFile.load(str(tmp_path / "keys.json")) == keys == copy.deepcopy(keys)
    assert KeyFile.load(tmp_path / "keys.json").find(second) == keys.keys[1]
    text = (tmp_path / "keys.json").read_text()
    assert first not in text
    assert second not in text
    assert json.loads(text)["keys"][0] == {"name": "a", "rate": 3, "admin": False} | {
        name: getattr(keys.keys[0], name) for name in ("sha256", "created")
    }


def test_only_the_owner_reads_a_file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text("{}")
    path.chmod(0o644)
    mask = os.umask(0o022)
    try:
        KeyFile().save(path)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_adding_and_removing_leave_the_keys_as_they_were():
    one = KeyFile().add(Key.of(new_key(), name="a"))
    two = one.add(Key.of(new_key(), name="b"))
    assert [key.name for key in one.keys] == ["a"]
    assert [key.name for key in two.remove("a").keys] == ["b"]
    assert two.remove("b") == one


def test_a_name_is_there_once():
    one = KeyFile().add(Key.of("x", name="a"))
    with pytest.raises(UsageError, match="there is a key of a already"):
        one.add(Key.of("y", name="a"))
    with pytest.raises(UsageError, match=r"must be that of a key \(a\), but is 'b'"):
        one.remove("b")
    with pytest.raises(UsageError, match=r"\(there is none\)"):
        KeyFile().remove("b")
    with pytest.raises(UsageError, match="`sha256` must be different"):
        one.add(Key.of("x", name="b"))


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\0", "\u200b", "x" * 65])
def test_a_name_can_be_read(name):
    with pytest.raises(UsageError, match="`name` must be 1 to 64 characters"):
        Key.of("x", name=name)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": 3}, "`name` must be"),
        ({"sha256": "0" * 63}, "`sha256` must be 64"),
        ({"sha256": "G" * 64}, "`sha256` must be 64"),
        ({"sha256": None}, "`sha256` must be 64"),
        ({"rate": 0}, "`rate` must be a whole number from 1, or nothing, but is 0"),
        ({"rate": True}, "`rate` must be"),
        ({"rate": 1.5}, "`rate` must be"),
        ({"admin": None}, "`admin` must be true or false, but is None"),
        ({"admin": "yes"}, "`admin` must be"),
        ({"created": "31.1.2026"}, "`created` must be a date"),
        ({"created": 20260131}, "`created` must be a date"),
        ({"more": 1}, "must have name, sha256, rate, admin, created, and nothing else"),
    ],
)
def test_a_key_that_is_not_right_is_refused(tmp_path, changed, words):
    path = written(tmp_path / "keys.json", RIGHT | changed)
    with pytest.raises(UsageError, match=words) as refused:
        KeyFile.load(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "as `nllb-prune keys add` makes"),
        ('{"keys": []}', "as `nllb-prune keys add` makes"),
        ('{"format": "nllb-prune/keys", "version": 2}', "format version 1, but has 2"),
        ('{"format": "nllb-prune/keys", "version": 1}', "`keys` must be a list"),
        ('{"format": "nllb-prune/keys", "version": 1, "keys": [1]}', "each of `keys` must have"),
    ],
)
def test_what_is_no_file_of_keys_is_refused(tmp_path, text, words):
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        KeyFile.load(tmp_path / "keys.json")


@pytest.mark.parametrize(
    ("other", "words"),
    [({"sha256": "1" * 64}, "`name` must be different"), ({"name": "b"}, "`sha256` must be different")],
)
def test_no_two_keys_are_the_same(tmp_path, other, words):
    with pytest.raises(UsageError, match=words):
        KeyFile.load(written(tmp_path / "keys.json", RIGHT, RIGHT | other))


def test_no_file(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        KeyFile.load(tmp_path / "keys.json")
