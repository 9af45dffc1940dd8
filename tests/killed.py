"""Runs of the command line that kill themselves, so that how far they come does not depend on time; also a program.

`python -m tests.killed EVENT ENDING TIMES ...` does what `nllb-prune ...` does, until it is about to open a file whose
name ends so (`open`), or to give a file such a name (`os.rename`); so many times that passes, the next time it is dead.
"""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

FILE = {"open": 0, "os.rename": 1}  # which of the values of an audit event is the file


def run_killed(event, ending, times, *arguments):
    """Run a command until it kills itself."""
    command = [sys.executable, "-m", "tests.killed", event, ending, *map(str, (times, *arguments))]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done


def run(event, ending, times, *arguments):
    from nllb_prune.cli import main

    seen = itertools.count()

    def hook(name, values):
        if name == event and str(values[FILE[name]]).endswith(ending) and next(seen) == int(times):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
