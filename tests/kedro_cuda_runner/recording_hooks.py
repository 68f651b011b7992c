"""Hooks that remember all that they are told."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager

if TYPE_CHECKING:
    from pluggy import PluginManager


class Call(NamedTuple):
    """One call of a hook.

    Attributes:
        hook: Its name.
        node: The node's name.
        arguments: The others, by name.
    """

    hook: str
    node: str
    arguments: dict[str, Any]

    def told(self) -> tuple[str, str, dict[str, Any]]:
        """Return what two runs have in common: no catalog, and of an error its text."""
        told = {key: one for key, one in self.arguments.items() if key != "catalog"}
        if "error" in told:
            told["error"] = repr(told["error"])
        return self.hook, self.node, told


class RecordingHooks:
    """All hooks of nodes and datasets, with all of their arguments.

    Args:
        seconds: How long each call takes.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[Call] = []
        self.most_at_once = 0
        self._seconds = seconds
        self._inside = 0
        self._lock = threading.Lock()

    def _record(self, hook: str, node: Any, **arguments: Any) -> None:
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
            self.calls.append(Call(hook, node.name, arguments))
        time.sleep(self._seconds)
        with self._lock:
            self._inside -= 1

    def of(self, node: str) -> list[Call]:
        return [call for call in self.calls if call.node == node]

    @hook_impl
    def before_dataset_loaded(self, dataset_name, node):
        self._record("before_dataset_loaded", node, dataset_name=dataset_name)

    @hook_impl
    def after_dataset_loaded(self, dataset_name, data, node):
        self._record("after_dataset_loaded", node, dataset_name=dataset_name, data=data)

    @hook_impl
    def before_dataset_saved(self, dataset_name, data, node):
        self._record("before_dataset_saved", node, dataset_name=dataset_name, data=data)

    @hook_impl
    def after_dataset_saved(self, dataset_name, data, node):
        self._record("after_dataset_saved", node, dataset_name=dataset_name, data=data)

    @hook_impl
    def before_node_run(self, node, catalog, inputs, is_async, run_id):
        self._record(
            "before_node_run",
            node,
            catalog=catalog,
            inputs=inputs,
            is_async=is_async,
            run_id=run_id,
        )

    @hook_impl
    def after_node_run(self, node, catalog, inputs, outputs, is_async, run_id):
        self._record(
            "after_node_run",
            node,
            catalog=catalog,
            inputs=inputs,
            outputs=outputs,
            is_async=is_async,
            run_id=run_id,
        )

    @hook_impl
    def on_node_error(self, error, node, catalog, inputs, is_async, run_id):
        self._record(
            "on_node_error",
            node,
            error=error,
            catalog=catalog,
            inputs=inputs,
            is_async=is_async,
            run_id=run_id,
        )


def manager_of(*hooks: object) -> PluginManager:
    """Return Kedro's manager with these hooks and no plugin's."""
    manager = _create_hook_manager()
    for one in hooks:
        manager.register(one)
    return manager
