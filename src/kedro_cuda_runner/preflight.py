"""Checks before the first node runs: pickling, devices, free memory, free disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.pipeline.node import Node

from kedro_cuda_runner.devices import Device, DeviceLayer, NoDevicesError
from kedro_cuda_runner.errors import PreflightError
from kedro_cuda_runner.formatting import gigabytes
from kedro_cuda_runner.outputs import existing_parent, output_path
from kedro_cuda_runner.placement import Placement
from kedro_cuda_runner.resources import Resources, is_gpu_node, resources_of
from kedro_cuda_runner.transfer import NotTransferableError, dumps

NO_DEVICE_REMEDY = (
    "run on a machine with an NVIDIA GPU, or choose an environment (--env) in which these nodes "
    "need none"
)


def read_resources(
    nodes: Sequence[Node], catalog: CatalogProtocol[Any, Any]
) -> tuple[dict[Node, Resources], list[str]]:
    """Return the resources of the GPU nodes among ``nodes``, and the invalid declarations."""
    resources, problems = {}, []
    for node in nodes:
        if is_gpu_node(node):
            try:
                resources[node] = resources_of(node, catalog)
            except PreflightError as error:
                problems.append(str(error))
    return resources, problems


def check(
    nodes: Sequence[Node], catalog: CatalogProtocol[Any, Any], layer: DeviceLayer
) -> dict[Node, Resources]:
    """Return the resources of the GPU nodes among ``nodes``.

    Raises:
        PreflightError: Names all problems that would stop these nodes later, with their remedies.
    """
    resources, problems = read_resources(nodes, catalog)
    problems += _transfer_problems(resources)
    problems += device_problems(resources, layer)
    problems += disk_problems(resources, catalog)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise PreflightError(f"the run cannot start:\n{listed}")
    return resources


def find_devices(resources: Mapping[Node, Resources], layer: DeviceLayer) -> list[Device]:
    """Return the devices; an empty list, without querying the hardware, if no node uses one.

    Raises:
        NoDevicesError: A node uses a device and there is none.
    """
    return layer.find() if any(required.devices for required in resources.values()) else []


def _transfer_problems(nodes: Mapping[Node, Resources]) -> list[str]:
    problems = []
    for node in nodes:
        try:
            dumps(node)
        except NotTransferableError as error:
            problems.append(
                f"node '{node.name}' cannot run in its own process: {error}. Define its function "
                f"at the top level of a module, not as a lambda or inside a function"
            )
    return problems


def device_problems(
    resources: Mapping[Node, Resources],
    layer: DeviceLayer,
    no_device_remedy: Callable[[], str] = lambda: NO_DEVICE_REMEDY,
) -> list[str]:
    """Return which GPU nodes lack devices or free memory on them.

    ``no_device_remedy`` returns the remedy for a machine without a device.
    """
    try:
        placement = Placement(find_devices(resources, layer), layer)
    except NoDevicesError as error:
        names = [f"'{node.name}'" for node, required in resources.items() if required.devices]
        return [f"{', '.join(names)}: {error.message}; {no_device_remedy()}"]
    problems = []
    for node, required in resources.items():
        if reason := placement.why_never_fits(required):
            remedy = f"; {required.remedy}" if required.remedy else ""
            problems.append(f"node '{node.name}': {reason}{remedy}")
    return problems


def disk_problems(
    resources: Mapping[Node, Resources], catalog: CatalogProtocol[Any, Any]
) -> list[str]:
    """Compare the output size of all nodes on each disk with its free space."""
    disks: dict[int, tuple[Path, dict[str, int]]] = {}
    for node, required in resources.items():
        paths = [output_path(catalog.get(name)) for name in node.outputs]
        folder = next((existing_parent(path) for path in paths if path is not None), None)
        if required.disk_bytes and folder is not None:
            _, sizes = disks.setdefault(folder.stat().st_dev, (folder, {}))
            sizes[f"'{node.name}'"] = required.disk_bytes
    remedy = "point the catalog entries of their outputs elsewhere"
    return [
        problem
        for folder, sizes in disks.values()
        for problem in free_disk_problems(sizes, folder, remedy)
    ]


def free_disk_problems(sizes: Mapping[str, int], folder: Path, remedy: str) -> list[str]:
    """Compare what will be written to a disk with its free space.

    Args:
        sizes: Bytes by what is written.
        folder: A folder on the disk; it need not exist yet.
        remedy: The remedy other than freeing disk space.
    """
    total, free = sum(sizes.values()), shutil.disk_usage(existing_parent(folder)).free
    if free >= total:
        return []
    listed = ", ".join(f"{what} {gigabytes(size)}" for what, size in sizes.items())
    return [
        f"about {gigabytes(total)} of disk are needed at {folder} ({listed}), {gigabytes(free)} "
        f"are free; make room, or {remedy}"
    ]
