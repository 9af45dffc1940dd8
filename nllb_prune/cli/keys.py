"""`nllb-prune keys`: give out API keys of the translation server, list them and take them back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from nllb_prune.cli._options import add_debug_to_actions, positive, table

HELP = "add, list or remove the API keys of the translation server"
EXAMPLE = "nllb-prune keys add keys.json newsroom --rate 120"
_SHOWN = ("name", "rate", "admin", "created")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-verbs."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key and print it, once; the file has only its hash")
    show = actions.add_parser("list", help="who has a key, and what it allows")
    remove = actions.add_parser("remove", help="take a key back")
    for action in (add, show, remove):
        action.add_argument("file", type=Path, metavar="FILE", help="of the keys, as in keys.json")
    for action in (add, remove):
        action.add_argument("name", metavar="NAME", help="of whoever has the key")
    add.add_argument("--rate", type=positive, metavar="N", help="texts a minute (default: the server's rate)")
    add.add_argument("--admin", action="store_true", help="may also have the server read masks and keys again")
    show.add_argument("--json", action="store_true", help="print as JSON")
    add_debug_to_actions((add, show, remove))


def run(options: argparse.Namespace) -> None:
    """Do the action."""
    {"add": _add, "list": _list, "remove": _remove}[options.action](options)


def _add(options: argparse.Namespace) -> None:
    from nllb_prune.serving.http.keys import Key, KeyFile, new_key

    keys = KeyFile.load(options.file) if options.file.exists() else KeyFile()
    secret = new_key()
    keys.add(Key.of(secret, name=options.name, rate=options.rate, admin=options.admin)).save(options.file)
    print(secret)
    print(f"The key of {options.name}; note it now, as {options.file} has only its hash.", file=sys.stderr)


def _list(options: argparse.Namespace) -> None:
    from nllb_prune.serving.http.keys import KeyFile

    keys = KeyFile.load(options.file).keys
    if options.json:
        print(json.dumps([{name: getattr(key, name) for name in _SHOWN} for key in keys]))
        return
    rows = [(key.name, str(key.rate or ""), "yes" if key.admin else "", key.created) for key in keys]
    print(table(_SHOWN, rows))


def _remove(options: argparse.Namespace) -> None:
    from nllb_prune.serving.http.keys import KeyFile

    keys = KeyFile.load(options.file).remove(options.name)
    keys.save(options.file)
    print(f"{options.file}: {len(keys.keys)} key{'s' * (len(keys.keys) != 1)}")
