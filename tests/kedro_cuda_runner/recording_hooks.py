"""Hooks that record their calls."""

from __future__ import annotations

import threading
import time
from typing import Any, NamedTuple

from kedro.framework.hooks import hook_impl


class Call(NamedTuple):
    """One call of a hook: its name, the node's name, and the other arguments by name."""

    hook: str
    node: str
    arguments: dict[str, Any]

    def comparable(self) -> tuple[str, str, dict[str, Any]]:
        """Return what two runs have in common: no catalog, and of an error its text."""
        arguments = {key: one for key, one in self.arguments.items() if key != "catalog"}
        if "error" in arguments:
            arguments["error"] = repr(arguments["error"])
        return self.hook, self.node, arguments


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

    def _record(self, hook: str, self_and_arguments: dict[str, Any]) -> None:
        arguments = {k: v for k, v in self_and_arguments.items() if k not in ("self", "node")}
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
            self.calls.append(Call(hook, self_and_arguments["node"].name, arguments))
        time.sleep(self._seconds)
        with self._lock:
            self._inside -= 1

    def of(self, node: str) -> list[Call]:
        return [call for call in self.calls if call.node == node]

    @hook_impl
    def before_dataset_loaded(self, dataset_name, node):
        self._record("before_dataset_loaded", locals())

    @hook_impl
    def after_dataset_loaded(self, dataset_name, data, node):
        self._record("after_dataset_loaded", locals())

    @hook_impl
    def before_dataset_saved(self, dataset_name, data, node):
        self._record("before_dataset_saved", locals())

    @hook_impl
    def after_dataset_saved(self, dataset_name, data, node):
        self._record("after_dataset_saved", locals())

    @hook_impl
    def before_node_run(self, node, catalog, inputs, is_async, run_id):
        self._record("before_node_run", locals())

    @hook_impl
    def after_node_run(self, node, catalog, inputs, outputs, is_async, run_id):
        self._record("after_node_run", locals())

    @hook_impl
    def on_node_error(self, error, node, catalog, inputs, is_async, run_id):
        self._record("on_node_error", locals())
