"""Makes a process behave as if some installed libraries were not installed."""

from __future__ import annotations

import importlib.metadata
import sys

# modules, and distributions: some have plugins for Kedro
HIDDEN = ("ja_instruct", "mlflow", "torch", "transformers", "accelerate", "wrapt", "kedro_mlflow")


class Finder:
    """Finds none of the hidden modules, before any other finder can."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def hide():
    sys.meta_path.insert(0, Finder)
    found = importlib.metadata.distributions
    importlib.metadata.distributions = lambda **context: (
        one for one in found(**context) if one.name.replace("-", "_") not in HIDDEN
    )
