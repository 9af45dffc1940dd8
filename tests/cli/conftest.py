import pytest


@pytest.fixture
def fails(cli):
    """Ends with status 1 and one line that begins with the verb; returns the line."""

    def call(*arguments):
        status, out, err = cli(*arguments)
        assert (status, out) == (1, ""), (out, err)
        assert err.startswith(f"nllb-prune {arguments[0]}: ")
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return err

    return call
