"""The run's hooks, called from several threads, one call at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from kedro.framework.hooks.manager import _NullPluginManager

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """Stands for pluggy's manager: hooks were written for a runner that runs one node at a time."""

    def __init__(self, manager: Any) -> None:
        """Take Kedro's hook manager, or its stand-in for none."""
        self._manager = manager
        self._turn = threading.RLock()

    @property
    def hook(self) -> SerialHooks:
        """Return what has the hooks as attributes."""
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return what fires a hook."""
        return lambda **arguments: self.fire(name, **arguments)

    def fire(self, name: str, **arguments: Any) -> Any:
        """Call a hook; return what its implementations returned where Kedro reads that.

        What else they return need not be fit for a journey to another process.
        """
        with self._turn:
            answers = getattr(self._manager.hook, name)(**arguments)
        return answers if name == "before_node_run" else None

    def listened_to(self) -> dict[str, frozenset[str]] | None:
        """Return which hooks of a node have listeners, and the arguments that they read.

        None means that there is no manager, and calls return None in place of a list.
        """
        if isinstance(self._manager, _NullPluginManager):
            return None
        listeners = {name: getattr(self._manager.hook, name).get_hookimpls() for name in NODE_HOOKS}
        return {
            name: frozenset(argument for one in found for argument in one.argnames)
            for name, found in listeners.items()
            if found
        }
