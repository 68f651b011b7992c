"""The GPU resources that a node declares, and what their estimates read before anything is loaded.

The declaration stands at the node's function; preflight and the CUDA runner both read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ja_instruct.checks import DescribesModel
from ja_instruct.errors import InputError
from ja_instruct.memory.estimates import ModelShape
from ja_instruct.models.text_model import text_settings

if TYPE_CHECKING:
    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

Function = TypeVar("Function", bound=Callable[..., Any])
Description = TypeVar("Description")
Estimate = Callable[["Node", "CatalogProtocol[Any, Any]"], Mapping[str, Any]]


def gpu_resources(estimate: Estimate) -> Callable[[Function], Function]:
    """Attach ``estimate`` to a node's function as its attribute ``gpu_resources``.

    The function itself is returned, so that Kedro finds its type hints and it can be pickled.

    Args:
        estimate: Maps node and catalog to ``devices`` (0: the node computes on the CPU) and, as
            far as they are known, ``memory_gb`` (peak on a device; a GB is 10⁹ bytes),
            ``parts_gb``, ``disk_gb`` and ``remedy``.

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
    """Return the full name of a section of the node's parameters, and its values.

    Args:
        node: Its inputs may carry a namespace: ``params:trial_a.sft``.
        catalog: Holds the values.
        section: The last part of the name: ``sft``.
    """
    names = (name.removeprefix("params:") for name in node.inputs if name.startswith("params:"))
    name = next(name for name in names if _last_part(name) == section)
    return name, catalog.load(f"params:{name}")


def model_shape_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> ModelShape | None:
    """Return the shape of the node's model without loading it.

    None if its configuration is not available yet, or if its family is unknown.
    """
    config = _describe_model(node, catalog, lambda model: model.peek_config())
    return None if config is None else ModelShape.from_config(config)


def positions_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> int | None:
    """Return the number of positions that the node's model was made for; None if unknown."""
    config = _describe_model(node, catalog, lambda model: model.peek_config()) or {}
    return text_settings(config).get("max_position_embeddings")


def parameter_count_of(node: Node, catalog: CatalogProtocol[Any, Any]) -> int | None:
    """Return the number of weights of the node's model without loading it; None if unknown."""
    return _describe_model(node, catalog, lambda model: model.parameter_count())


def _describe_model(
    node: Node,
    catalog: CatalogProtocol[Any, Any],
    describe: Callable[[DescribesModel], Description | None],
) -> Description | None:
    """Describe the node's model, or ``base_model`` if ``quantized_model`` does not exist yet.

    A ``base_model`` in the node's namespace takes precedence.
    """
    name = next(
        (name for name in node.inputs if _last_part(name) in ("quantized_model", "base_model")), ""
    )
    base_model = name.removesuffix(_last_part(name)) + "base_model"
    for source in dict.fromkeys((name, base_model, "base_model")):
        dataset = catalog.get(source) if source in catalog else None
        try:
            described = describe(dataset) if isinstance(dataset, DescribesModel) else None
        except InputError:  # which the dataset's own check reports
            described = None
        if described is not None:
            return described
    return None


def memory(parts: Mapping[str, int] | None) -> dict[str, Any]:
    """Return ``memory_gb`` and ``parts_gb`` for a peak in bytes by part; nothing for None."""
    if parts is None:
        return {}
    return {
        "memory_gb": sum(parts.values()) / 1e9,
        "parts_gb": {part: size / 1e9 for part, size in parts.items() if size},
    }


def _last_part(name: str) -> str:
    return name.rsplit(".", maxsplit=1)[-1]
