"""The calls of a run's hooks: from several threads, and from nodes' processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Self

from kedro_cuda_runner.channel import Channel
from kedro_cuda_runner.transfer import pack_error, pack_for_hooks

# small arguments of hooks, sent unchanged
PLAIN_ARGUMENTS = ("dataset_name", "is_async", "run_id")


class _Manager:
    """Replaces pluggy's manager: ``manager.hook.before_node_run(...)`` is passed to ``call``."""

    @property
    def hook(self) -> Self:
        return self

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self.call, name)

    def call(self, name: str, **arguments: Any) -> Any:
        raise NotImplementedError


class SerialHooks(_Manager):
    """Calls one hook at a time: hooks are written for runners that run one node at a time.

    ``manager`` is Kedro's hook manager or its ``_NullPluginManager``, which has no hooks.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._lock = threading.RLock()

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a hook; return the results of ``before_node_run``, the only ones that Kedro reads.

        Other results may not be picklable, so they do not reach a node's process.
        """
        with self._lock:
            results = getattr(self._manager.hook, name)(**arguments)
        return results if name == "before_node_run" else None

    def implemented(self) -> dict[str, frozenset[str]]:
        """Return the implemented hooks with the arguments that their implementations take."""
        found = {name: caller.get_hookimpls() for name, caller in vars(self._manager.hook).items()}
        return {
            name: frozenset(argument for one in implementations for argument in one.argnames)
            for name, implementations in found.items()
            if implementations
        }


class RemoteHooks(_Manager):
    """Calls the runner's hooks from a node's process.

    It sends only the arguments that an implementation takes, and each input once, unless the runner
    has it already (``known``).
    """

    def __init__(
        self, channel: Channel, implemented: dict[str, frozenset[str]], known: Collection[str]
    ) -> None:
        self._channel = channel
        self._implemented = implemented
        self._known = set(known)

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a hook in the runner's process, if it is implemented."""
        if name not in self._implemented:
            return None
        packed = self._pack(name, self._implemented[name], arguments)
        return self._channel.request("hook", name, packed)

    def _pack(self, name: str, taken: Collection[str], arguments: dict[str, Any]) -> dict[str, Any]:
        packed: dict[str, Any] = {
            key: value if key in PLAIN_ARGUMENTS else None
            for key, value in arguments.items()
            if key not in ("node", "catalog")
        }
        if "error" in packed:
            packed["error"] = pack_error(arguments["error"])
        if "data" in taken and name == "after_dataset_loaded":
            packed["data"] = self._pack_input(arguments["dataset_name"], arguments["data"])
        elif "data" in taken:
            packed["data"] = pack_for_hooks(arguments["data"])
        if "inputs" in taken:
            inputs = arguments["inputs"]
            packed["inputs"] = {key: self._pack_input(key, inputs[key]) for key in inputs}
        if "outputs" in taken:
            outputs = arguments["outputs"]
            packed["outputs"] = {key: pack_for_hooks(outputs[key]) for key in outputs}
        return packed

    def _pack_input(self, name: str, value: Any) -> Any:
        if name in self._known:
            return None
        self._known.add(name)
        return pack_for_hooks(value)
