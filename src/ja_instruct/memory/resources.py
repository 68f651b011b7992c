"""Saying beside a node what it needs of the GPUs, and what such an estimate looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ja_instruct.checks import DescribesModel
from ja_instruct.memory.estimates import ModelShape

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

Function = TypeVar("Function", bound=Callable[..., Any])
Estimate = Callable[["Node", "CatalogProtocol[Any, Any]"], Mapping[str, Any]]


def gpu_resources(estimate: Estimate) -> Callable[[Function], Function]:
    """Attach ``estimate`` to a node's function as its attribute ``gpu_resources``.

    The function itself is returned, so that its hints are found and it can be pickled.

    Args:
        estimate: From node and catalog to ``devices``, and where they are known ``memory_gb``
            (peak on a device; a GB is 10⁹ bytes), ``parts_gb``, ``disk_gb`` and ``remedy``.

    Examples:
        >>> @gpu_resources(lambda node, catalog: {"devices": 1, "memory_gb": 8})
        ... def train(model): ...
        >>> train.gpu_resources(None, None)
        {'devices': 1, 'memory_gb': 8}
    """

    def attach(function: Function) -> Function:
        vars(function)["gpu_resources"] = estimate
        return function

    return attach


def parameters_of(node: Node, catalog: CatalogProtocol[Any, Any], section: str) -> tuple[str, Any]:
    """Return where a section of the node's parameters stands, and its values.

    Args:
        node: Its inputs may carry a namespace: ``params:trial_a.sft``.
        catalog: Holds the values.
        section: The name's last part: ``sft``.
    """
    name = next(
        name
        for name in node.inputs
        if name.startswith("params:") and _last_part(name.removeprefix("params:")) == section
    )
    return name.removeprefix("params:"), catalog.load(name)


def model_shape_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> ModelShape | None:
    """Return the shape of the model that the node takes, before anything is loaded.

    A ``quantized_model`` that is not there yet will have the shape of ``base_model``, of the same
    namespace where it has one of its own. None where neither can say, or is of an unknown family.
    """
    name = next(
        (name for name in node.inputs if _last_part(name) in ("quantized_model", "base_model")), ""
    )
    base_model = name.removesuffix(_last_part(name)) + "base_model"
    for source in dict.fromkeys((name, base_model, "base_model")):
        dataset = catalog.get(source) if source in catalog else None
        config = dataset.peek_config() if isinstance(dataset, DescribesModel) else None
        if config is not None:
            return ModelShape.from_config(config)
    return None


def memory(parts: Mapping[str, int] | None) -> dict[str, Any]:
    """Return ``memory_gb`` and ``parts_gb`` of a peak by its parts in bytes; nothing of None."""
    if parts is None:
        return {}
    return {
        "memory_gb": sum(parts.values()) / 1e9,
        "parts_gb": {part: size / 1e9 for part, size in parts.items() if size},
    }


def _last_part(name: str) -> str:
    return name.rsplit(".", maxsplit=1)[-1]
