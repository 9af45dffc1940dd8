import pytest

from nllb_prune.errors import UsageError
from nllb_prune.planning.counts import check_overrides, explicit_counts, parse_counts, read_overrides


def test_parse_counts():
    assert parse_counts("encoder=36,decoder=12") == {"encoder": 36, "decoder": 12}
    assert parse_counts("encoder=3/4, decoder=2") == {"encoder": (3, 4), "decoder": 2}


@pytest.mark.parametrize("text", ["", "36", "encoder=", "encoder=x", "encoder=3/", "encoder=-3", "a=1,a=2"])
def test_parse_counts_refuses(text):
    with pytest.raises(UsageError, match="must be like encoder=36,decoder=12"):
        parse_counts(text)


def test_explicit_counts(small_stacks):
    counts = explicit_counts({"decoder": 2, "encoder": (3, 8)}, small_stacks, minimum=2)
    assert counts == {"encoder": (3, 8), "decoder": (2, 2)}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"encoder": 3}, "must be of encoder and decoder, but is of encoder instead"),
        ({"encoder": 3, "decoder": 3, "other": 3}, "encoder and decoder"),
        ({"encoder": 9, "decoder": 3}, "`counts/encoder` must be 2 to 8 experts a layer, but is 9"),
        ({"encoder": 1, "decoder": 3}, "2 to 8"),
        ({"encoder": 3.5, "decoder": 3}, "but is 3.5"),
        ({"encoder": True, "decoder": 3}, "but is True"),
        ({"encoder": (3, 3, 3), "decoder": 3}, "must be of 2 encoder layers, but are 3"),
    ],
)
def test_explicit_counts_refuses(small_stacks, counts, message):
    with pytest.raises(UsageError, match=message):
        explicit_counts(counts, small_stacks, minimum=2)


def test_read_overrides(tmp_path):
    (tmp_path / "o.toml").write_text("[languages.eng_Latn]\ndecoder = 18\n[languages.deu_Latn]\nencoder = 3\n")
    assert read_overrides(tmp_path / "o.toml") == {"eng_Latn": {"decoder": 18}, "deu_Latn": {"encoder": 3}}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[", "not valid TOML"), (b"\xff", "not valid TOML"), (b"", "but has none"), (b"[pruning]", "but has pruning")],
)
def test_read_overrides_refuses(tmp_path, content, message):
    (tmp_path / "o.toml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_overrides(tmp_path / "o.toml")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_overrides(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_overrides(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"xxx": {"decoder": 4}}, "must be of aaa, bbb, but are of xxx too"),
        ({"aaa": {"middle": 4}}, "`overrides/aaa` must be of encoder, decoder, but is of middle"),
        ({"aaa": {"decoder": 9}}, "`overrides/aaa/decoder` must be 2 to 8 experts a layer, but is 9"),
        ({"aaa": {"decoder": "4"}}, "2 to 8"),
        ({"aaa": 4}, "counts by language and stack"),
        (4, "counts by language and stack"),
    ],
)
def test_check_overrides(small_stacks, overrides, message):
    with pytest.raises(UsageError, match=message):
        check_overrides(overrides, small_stacks, {"aaa", "bbb"}, minimum=2)
