"""What a node needs of the machine, as its project declares it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kedro_cuda_runner.errors import PreflightError

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

GPU_TAG = "gpu"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _are_sizes(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_size, value.values()))


KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "devices": (_is_count, "whole number from 0 up"),
    "memory_gb": (_is_size, "number of GB from 0 up"),
    "memory_min_gb": (_is_size, "number of GB from 0 up"),
    "disk_gb": (_is_size, "number of GB from 0 up"),
    "parts_gb": (_are_sizes, "mapping from parts to numbers of GB"),
    "remedy": (lambda value: isinstance(value, str), "text"),
}


@dataclass(frozen=True)
class Resources:
    """What one node needs while it runs.

    Attributes:
        devices: CUDA devices; 0 for a node that computes on the CPU, in a process of its own.
        memory_bytes: Peak of GPU memory on each device; None where nobody knows, and then the node
            gets its devices for itself.
        disk_bytes: Written to the disk of its outputs.
        memory_min_bytes: What it can make do with on a device of its own, such as with a smaller
            batch; None where that is ``memory_bytes``.
        parts: What the memory is made of, in bytes, for the report.
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
        """Return what each device must have free; None where nobody knows."""
        return self.memory_bytes if self.memory_min_bytes is None else self.memory_min_bytes


def is_gpu_node(node: Node) -> bool:
    """Return whether a node runs in a process of its own: its tag is ``gpu``."""
    return GPU_TAG in node.tags


def resources_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> Resources:
    """Return what a node declares.

    Two places count, the second over the first:

    - the attribute ``gpu_resources`` of the node's function: a mapping, or a function from the node
      and the catalog to a mapping, for an estimate;
    - the key ``gpu`` of a parameter that the node takes (``params:training`` with ``gpu:
      {devices: 2}``); a key that is missing there, or null, leaves the function's.

    The keys are ``devices``, ``memory_gb`` (peak on each device), ``disk_gb``, and from functions
    also ``memory_min_gb`` (what it can make do with), ``parts_gb`` and ``remedy``; a GB is 10⁹
    bytes. A node that declares nothing needs one device for itself.

    Raises:
        PreflightError: A key is unknown or its value makes no sense.
    """
    declared = _declared_by_function(node)
    values = _checked(
        node, "gpu_resources", declared(node, catalog) if callable(declared) else declared
    )
    for name in node.inputs:
        if name.startswith("params:"):
            section = catalog.load(name)
            has_keys = isinstance(section, Mapping)
            found = section.get("gpu") if has_keys else getattr(section, "gpu", None)
            said = _checked(node, name, found)
            if "memory_gb" in said:
                values.pop("memory_min_gb", None)
            values |= said
    memory, least = values.get("memory_gb"), values.get("memory_min_gb")
    return Resources(
        devices=values.get("devices", 1),
        memory_bytes=None if memory is None else round(memory * 1e9),
        disk_bytes=round(values.get("disk_gb", 0) * 1e9),
        memory_min_bytes=None if least is None else round(least * 1e9),
        parts={part: round(size * 1e9) for part, size in values.get("parts_gb", {}).items()},
        remedy=values.get("remedy", ""),
    )


def _declared_by_function(node: Node) -> Any:
    function: Any = node.func
    while isinstance(function, functools.partial) and not hasattr(function, "gpu_resources"):
        function = function.func
    return getattr(function, "gpu_resources", None)


def _checked(node: Node, where: str, found: Any) -> dict[str, Any]:
    """Return what a place says, without what it leaves open."""
    if found is None:
        return {}
    values = found.model_dump() if hasattr(found, "model_dump") else found
    if not isinstance(values, Mapping):
        raise PreflightError(
            f"node '{node.name}', {where}: {values!r} is no mapping; known are {', '.join(KEYS)}"
        )
    if unknown := sorted(map(str, values.keys() - KEYS.keys())):
        raise PreflightError(
            f"node '{node.name}', {where}: unknown keys {', '.join(unknown)}; known are "
            f"{', '.join(KEYS)}"
        )
    said = {key: value for key, value in values.items() if value is not None}
    for key, value in said.items():
        is_right, wanted = KEYS[key]
        if not is_right(value):
            raise PreflightError(f"node '{node.name}', {where}: {key} = {value!r} is no {wanted}")
    return said
