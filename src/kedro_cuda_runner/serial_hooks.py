"""The hooks of a run, called from several threads, one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kedro.framework.hooks.manager import _NullPluginManager

NODE_HOOKS = (
    "before_dataset_loaded",
    "after_dataset_loaded",
    "before_dataset_saved",
    "after_dataset_saved",
    "before_node_run",
    "after_node_run",
    "on_node_error",
)


class SerialHooks:
    """Replaces pluggy's manager: hooks are written for runners that run one node at a time."""

    def __init__(self, manager: Any) -> None:
        """Wrap Kedro's hook manager or its ``_NullPluginManager``."""
        self._manager = manager
        self._lock = threading.RLock()

    @property
    def hook(self) -> SerialHooks:
        """Return the object whose attributes are the hooks, as pluggy's manager does."""
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a function that calls a hook."""
        return lambda **arguments: self.call(name, **arguments)

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a hook; return the results of ``before_node_run``, the only ones that Kedro reads.

        Other results may not be picklable, so they do not reach a node's process.
        """
        with self._lock:
            results = getattr(self._manager.hook, name)(**arguments)
        return results if name == "before_node_run" else None

    def implemented(self) -> dict[str, frozenset[str]] | None:
        """Return the implemented hooks of nodes with the arguments that they take.

        None means that there is no manager: a call then returns None instead of a list.
        """
        if isinstance(self._manager, _NullPluginManager):
            return None
        found = {name: getattr(self._manager.hook, name).get_hookimpls() for name in NODE_HOOKS}
        return {
            name: frozenset(argument for one in implementations for argument in one.argnames)
            for name, implementations in found.items()
            if implementations
        }
