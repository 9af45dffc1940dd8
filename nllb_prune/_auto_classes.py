"""The Auto classes of transformers learn of pruned checkpoints when transformers is imported, before or after this.

Importing transformers takes seconds, so this package does not do it on import; it waits for whoever does.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TRANSFORMERS = "transformers"


def install() -> None:
    """Register now if transformers is imported already, otherwise once it is."""
    if _TRANSFORMERS in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    importlib.import_module("nllb_prune.model.registration").register()


class _Waiting(MetaPathFinder):
    """Finds transformers as others find it, and registers once it has run."""

    def __init__(self) -> None:
        self._asking = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TRANSFORMERS or self._asking:
            return None
        self._asking = True  # the others, not this one again
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(Loader):
    """Runs transformers, then registers."""

    def __init__(self, loader: Loader, waiting: _Waiting) -> None:
        self._loader, self._waiting = loader, waiting

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # as if it had not been wrapped
            module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._waiting in sys.meta_path:
            sys.meta_path.remove(self._waiting)
        _register()
