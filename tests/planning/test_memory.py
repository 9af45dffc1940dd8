import pytest

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import ParameterCounts
from nllb_prune.planning.memory import fitting_cards, largest_fit, parse_memory, show_bytes, weight_bytes

COUNTS = ParameterCounts(dense=1000, router=50, expert={"encoder": 10, "decoder": 20})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("16 GB", 16 * 10**9),
        ("1.5MB", 1_500_000),
        ("800mib", 800 * 2**20),
        ("3KiB", 3072),
        ("2TB", 2 * 10**12),
        ("4096", 4096),
        ("4096B", 4096),
        ("8G", 8 * 10**9),
    ],
)
def test_parse(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "12 PB", "24iB", "24 GiBs", "nan", "1.GB"])
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="such as 24GiB, 16GB or 800MiB"):
        parse_memory(text)


def test_bytes():
    assert weight_bytes(COUNTS, {"encoder": 3, "decoder": 2}, "bfloat16") == 2 * (1000 + 30 + 40) + 4 * 50
    assert weight_bytes(COUNTS, {"encoder": 3, "decoder": 2}, "float32") == 4 * (1000 + 30 + 40 + 50)
    with pytest.raises(UsageError, match="bfloat16, float16, float32, but is int8"):
        weight_bytes(COUNTS, {}, "int8")


def test_largest_fit():
    budgets = range(4, 10)
    assert largest_fit(70, budgets, lambda n: 10 * n) == 7
    assert largest_fit(79, budgets, lambda n: 10 * n) == 7
    assert largest_fit(40, budgets, lambda n: 10 * n) == 4
    assert largest_fit(1000, budgets, lambda n: 10 * n) == 9
    with pytest.raises(UsageError, match=r"must be 40 bytes or more .* fewest experts \(4\), but is 39 bytes"):
        largest_fit(39, budgets, lambda n: 10 * n)


def test_cards():
    assert fitting_cards(23 * 10**9) == (24, 32, 40, 48, 80, 141)
    assert fitting_cards(24 * 10**9) == (32, 40, 48, 80, 141)
    assert fitting_cards(10**12) == ()
    assert show_bytes(1_234_567_890) == "1.23 GB (1234567890 bytes)"
