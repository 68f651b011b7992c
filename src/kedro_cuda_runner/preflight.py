"""What must be there before the first node runs."""

from __future__ import annotations

import shutil
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from kedro_cuda_runner.devices import NoDevicesError
from kedro_cuda_runner.errors import PreflightError
from kedro_cuda_runner.formatting import gigabytes
from kedro_cuda_runner.outputs import output_path
from kedro_cuda_runner.placement import Placement
from kedro_cuda_runner.resources import Resources, is_gpu_node, resources_of
from kedro_cuda_runner.transfer import NotTransferableError, dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from kedro.io import CatalogProtocol
    from kedro.pipeline.node import Node

    from kedro_cuda_runner.devices import Device, DeviceLayer

NO_DEVICE_REMEDY = (
    "run on a machine with an NVIDIA GPU, or choose an environment (--env) in which these nodes "
    "need none"
)


def read_resources(
    nodes: Sequence[Node], catalog: CatalogProtocol[Any, Any]
) -> tuple[dict[Node, Resources], list[str]]:
    """Return what the GPU nodes among ``nodes`` need, and what is wrong with what they declare."""
    resources, problems = {}, []
    for node in nodes:
        if is_gpu_node(node):
            try:
                resources[node] = resources_of(node, catalog)
            except PreflightError as error:
                problems.append(str(error))
    return resources, problems


def find_problems(
    resources: Mapping[Node, Resources],
    catalog: CatalogProtocol[Any, Any],
    layer: DeviceLayer,
) -> list[str]:
    """Return everything that would stop these nodes later, each with its remedy.

    Args:
        resources: The GPU nodes of the run.
        catalog: With their outputs.
        layer: The hardware.
    """
    return [
        *_transfer_problems(resources),
        *device_problems(resources, layer),
        *_disk_problems(resources, catalog),
    ]


def find_devices(resources: Mapping[Node, Resources], layer: DeviceLayer) -> list[Device]:
    """Return the devices, or none where no node needs one; then the hardware is not asked.

    Raises:
        NoDevicesError: There are none.
    """
    return layer.find() if any(required.devices for required in resources.values()) else []


def _transfer_problems(resources: Mapping[Node, Resources]) -> list[str]:
    problems = []
    for node in resources:
        try:
            dumps(node)
        except NotTransferableError as error:
            problems.append(
                f"node '{node.name}' cannot be run in a process of its own: {error}. Define its "
                f"function at the top level of a module, not as a lambda or inside a function"
            )
    return problems


def device_problems(
    resources: Mapping[Node, Resources],
    layer: DeviceLayer,
    no_device_remedy: Callable[[], str] = lambda: NO_DEVICE_REMEDY,
) -> list[str]:
    """Return which nodes lack devices or free memory on them.

    Args:
        resources: The GPU nodes of the run.
        layer: The hardware.
        no_device_remedy: Returns what to do on a machine without a device.
    """
    try:
        placement = Placement(find_devices(resources, layer), layer)
    except NoDevicesError as error:
        names = ", ".join(
            f"'{node.name}'" for node, required in resources.items() if required.devices
        )
        return [f"{names}: {error.message}; {no_device_remedy()}"]
    problems = []
    for node, required in resources.items():
        why = placement.could_ever_fit(required)
        if why:
            remedy = f"; {required.remedy}" if required.remedy else ""
            problems.append(f"node '{node.name}': {why}{remedy}")
    return problems


def _disk_problems(
    resources: Mapping[Node, Resources], catalog: CatalogProtocol[Any, Any]
) -> list[str]:
    """Compare what all nodes write to a disk with what is free there."""
    wanted: dict[int, dict[str, int]] = defaultdict(dict)
    folders: dict[int, Path] = {}
    for node, required in resources.items():
        paths = [output_path(catalog.get(name)) for name in node.outputs]
        folder = next((existing_parent(path) for path in paths if path is not None), None)
        if required.disk_bytes and folder is not None:
            disk = folder.stat().st_dev
            wanted[disk][node.name] = required.disk_bytes
            folders.setdefault(disk, folder)
    problems = []
    for disk, sizes in wanted.items():
        required_bytes, free = sum(sizes.values()), shutil.disk_usage(folders[disk]).free
        if free < required_bytes:
            nodes = ", ".join(f"'{name}' {gigabytes(size)}" for name, size in sizes.items())
            problems.append(
                f"about {gigabytes(required_bytes)} of disk are needed at {folders[disk]} "
                f"({nodes}), {gigabytes(free)} are free; make room, or point the catalog entries "
                f"of their outputs elsewhere"
            )
    return problems


def existing_parent(path: Path) -> Path:
    """Return the folder that tells of the disk on which ``path`` will be."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
