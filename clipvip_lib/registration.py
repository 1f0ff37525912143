"""``AutoConfig`` and ``AutoModel`` of transformers know CLIP-ViP after ``import clipvip_lib``.

Importing the model takes seconds (torch, transformers), which ``import clipvip_lib`` and the command line must
not. So it waits until transformers itself is imported, wherever that happens.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys

MODEL = "clipvip_lib.models.clip_vip"


class _AfterTransformers(importlib.abc.MetaPathFinder):
    """Finds transformers as the other finders do, and imports MODEL, which registers itself, when it is executed."""

    searching = False

    def find_spec(self, name, path=None, target=None):
        if name != "transformers" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            sys.meta_path.remove(self)
            importlib.import_module(MODEL)

        spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Register now if transformers is there already, else as soon as it is."""
    if "transformers" in sys.modules:
        importlib.import_module(MODEL)
    elif not any(isinstance(finder, _AfterTransformers) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTransformers())
