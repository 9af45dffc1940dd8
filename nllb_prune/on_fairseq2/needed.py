"""Says in one line what is missing where fairseq2 cannot be used."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from nllb_prune.errors import UsageError

VERIFIED = "0.8.1"
_HOW = (
    f"make an environment of its own for it (`make env-fairseq2` in a clone, or `pip install 'nllb-prune[fairseq2]'` "
    f"into an empty one): fairseq2 {VERIFIED} needs torch 2.9.1 and transformers 4.57"
)


def need_fairseq2() -> str:
    """Return the version of fairseq2 that is installed and works.

    Raises:
        UsageError: if it is missing, of another version, or does not load.
    """
    try:
        found = version("fairseq2")
    except PackageNotFoundError:
        raise UsageError(f"The backend fairseq2 must be installed, but is not; {_HOW}.") from None
    if found != VERIFIED:
        raise UsageError(f"fairseq2 must be {VERIFIED}, but is {found} instead; {_HOW}.")
    try:
        import fairseq2  # noqa: F401 - whether its native part loads
    except Exception as error:  # whatever the native part stumbles over: a library of the system, another torch
        reason = " ".join(str(error).split())
        if "sndfile" in reason:
            raise UsageError(
                "The library libsndfile must be on this machine for fairseq2, but is not; on Debian and Ubuntu: "
                "apt-get install libsndfile1"
            ) from None
        raise UsageError(f"fairseq2 {found} must load here, but does not ({reason[:200]}); {_HOW}.") from None
    return found


def main() -> int:
    """Say whether fairseq2 can be used here; 0 is success."""
    try:
        print(f"fairseq2 {need_fairseq2()}")
    except UsageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
