"""The resources that a node declares: devices, GPU memory, disk."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline.node import Node

from kedro_cuda_runner.errors import PreflightError

GPU_TAG = "gpu"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_sizes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_size, value.values()))


# each key with its check and the expected type in words
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "devices": (_is_count, "a whole number from 0 up"),
    "memory_gb": (_is_size, "a number of GB from 0 up"),
    "memory_min_gb": (_is_size, "a number of GB from 0 up"),
    "disk_gb": (_is_size, "a number of GB from 0 up"),
    "parts_gb": (_are_sizes, "a mapping from parts to numbers of GB"),
    "remedy": (lambda value: isinstance(value, str), "text"),
}


@dataclass(frozen=True)
class Resources:
    """The resources of one node while it runs.

    Attributes:
        devices: Number of CUDA devices; 0 for a node that computes on the CPU in its own process.
        memory_bytes: Peak GPU memory on each device. None if unknown: the node then does not share
            its devices.
        disk_bytes: Size of the outputs on disk.
        memory_min_bytes: Minimum memory on a device that the node does not share, for example with
            a smaller batch; None means ``memory_bytes``.
        parts: Breakdown of the memory in bytes, for the report.
        remedy: What to change when memory runs out.
    """

    devices: int = 1
    memory_bytes: int | None = None
    disk_bytes: int = 0
    memory_min_bytes: int | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    remedy: str = ""

    @property
    def least_bytes(self) -> int | None:
        """Return the memory that must be free on each device; None if unknown."""
        return self.memory_bytes if self.memory_min_bytes is None else self.memory_min_bytes


def is_gpu_node(node: Node) -> bool:
    """Return whether a node has the tag ``gpu`` and so runs in its own process."""
    return GPU_TAG in node.tags


def resources_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> Resources:
    """Return the resources that a node declares; by default one device that it does not share.

    They are declared in two places, of which the second takes precedence:

    - the attribute ``gpu_resources`` of the node's function: a mapping, or a function from node
      and catalog to a mapping;
    - the key ``gpu`` of a parameter that is an input of the node (``params:training`` with ``gpu:
      {devices: 2}``). A missing key or null keeps the function's value.

    The keys are ``devices``, ``memory_gb`` (peak on each device), ``memory_min_gb``, ``disk_gb``,
    ``parts_gb`` and ``remedy``; a GB is 10⁹ bytes.

    Raises:
        PreflightError: A key is unknown or its value is invalid.
    """
    declared = _declared_by_function(node)
    values = _checked(
        node, "gpu_resources", declared(node, catalog) if callable(declared) else declared
    )
    for name in node.inputs:
        if name.startswith("params:"):
            section = catalog.load(name)
            is_mapping = isinstance(section, Mapping)
            found = section.get("gpu") if is_mapping else getattr(section, "gpu", None)
            given = _checked(node, name, found)
            if "memory_gb" in given:
                values.pop("memory_min_gb", None)
            values |= given

    def size(key: str) -> int | None:
        return round(values[key] * 1e9) if key in values else None

    return Resources(
        devices=values.get("devices", 1),
        memory_bytes=size("memory_gb"),
        disk_bytes=size("disk_gb") or 0,
        memory_min_bytes=size("memory_min_gb"),
        parts={part: round(gb * 1e9) for part, gb in values.get("parts_gb", {}).items()},
        remedy=values.get("remedy", ""),
    )


def _declared_by_function(node: Node) -> Any:
    function: Any = node.func
    while isinstance(function, functools.partial) and not hasattr(function, "gpu_resources"):
        function = function.func
    return getattr(function, "gpu_resources", None)


def _checked(node: Node, where: str, found: Any) -> dict[str, Any]:
    """Return the declared values without those that are null."""
    if found is None:
        return {}
    values = found.model_dump() if hasattr(found, "model_dump") else found
    place, known = f"node '{node.name}', {where}", f"known are {', '.join(KEYS)}"
    if not isinstance(values, Mapping):
        raise PreflightError(f"{place}: {values!r} is not a mapping; {known}")
    if unknown := sorted(map(str, values.keys() - KEYS.keys())):
        raise PreflightError(f"{place}: unknown keys {', '.join(unknown)}; {known}")
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        is_valid, expected = KEYS[key]
        if not is_valid(value):
            raise PreflightError(f"{place}: {key} = {value!r} is not {expected}")
    return given
