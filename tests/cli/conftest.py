import pytest

from nllb_prune.cli import main


@pytest.fixture
def cli(capfd):
    def call(*arguments):
        capfd.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = ended.code
        return status, *capfd.readouterr()

    return call


@pytest.fixture
def works(cli):
    def call(*arguments):
        status, out, err = cli(*arguments)
        assert status == 0, err
        return out

    return call


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
