"""Compare devices, libraries, memory and disk with what the nodes of a run declare."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from kedro.framework.project import settings

from ja_instruct.checks import Downloads, StoresWeights
from ja_instruct.memory.estimates import cpu_memory_bytes
from ja_instruct.memory.resources import parameter_count_of
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.pipelines.sft.parameters import SftParameters
from ja_instruct.preflight.caches import cache_problems
from kedro_cuda_runner.devices import default_layer
from kedro_cuda_runner.formatting import gigabytes
from kedro_cuda_runner.outputs import output_path
from kedro_cuda_runner.preflight import device_problems, disk_problems, free_disk_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline.node import Node

    from kedro_cuda_runner.resources import Resources

CPU_ENVIRONMENTS = {
    "demo": " (a small real model)",
    "test": " (tiny random models, after 'make tiny-models')",
}


def gpu_problems(
    resources: Mapping[Node, Resources],
    catalog: DataCatalog,
    cpu_environments: Callable[[], Sequence[str]],
    runner: str,
) -> list[str]:
    """Return which devices, which runner and which library the GPU nodes lack.

    Args:
        resources: The GPU nodes of the run.
        catalog: With their parameters.
        cpu_environments: Returns the environments to suggest when no GPU is found.
        runner: The name of the runner.
    """
    problems = device_problems(
        resources, default_layer(), lambda: _no_gpu_remedy(cpu_environments())
    )
    problems += [
        f"node '{node.name}' requests {required.devices} devices, which only the CUDA runner "
        f"provides; add --runner=kedro_cuda_runner.CudaRunner"
        for node, required in resources.items()
        if required.devices > 1 and "CudaRunner" not in runner
    ]
    sections = _sections_with_unsloth(resources, catalog)
    if sections and find_spec("unsloth") is None:
        backends = ", ".join(f"{section}.backend" for section in sections)
        problems.append(
            f"{backends}: 'unsloth' is not installed; pip install -e '.[gpu]' -c requirements.txt"
        )
    return problems


def _sections_with_unsloth(nodes: Iterable[Node], catalog: DataCatalog) -> list[str]:
    names = dict.fromkeys(name for node in nodes for name in node.inputs)
    sections = {
        name.removeprefix("params:"): catalog.load(name)
        for name in names
        if name.startswith("params:")
    }
    return [
        section
        for section, values in sections.items()
        if isinstance(values, SftParameters | InferenceParameters) and values.backend == "unsloth"
    ]


def _no_gpu_remedy(cpu_environments: Sequence[str]) -> str:
    listed = ", ".join(
        f"'--env={name}'{CPU_ENVIRONMENTS.get(name, '')}" for name in cpu_environments
    )
    without = f", or in an environment that needs none: {listed}" if listed else ""
    return f"run on a machine with an NVIDIA GPU{without}"


def environments_without_gpu(context: KedroContext) -> list[str]:
    """Return the environments of ``conf/`` in which no section's device is ``cuda``."""
    loader: Any = context.config_loader
    found = []
    for name in loader.environments():
        if name in (loader.base_env, loader.default_run_env):
            continue
        other = type(loader)(loader.conf_source, env=name, **settings.CONFIG_LOADER_ARGS)
        sections = other["parameters"].values()
        if not any(isinstance(one, dict) and one.get("device") == "cuda" for one in sections):
            found.append(name)
    return found


def space_problems(
    resources: Mapping[Node, Resources],
    catalog: DataCatalog,
    inputs: Iterable[str],
    outputs: Collection[str],
) -> list[str]:
    """Compare free host memory and free disk with what the run takes; check its cache folders.

    Args:
        resources: The GPU nodes of the run, which may compute on the CPU.
        catalog: With their inputs and outputs.
        inputs: Names of the run's inputs, which may have to be downloaded.
        outputs: Names of the run's outputs.
    """
    from huggingface_hub import constants

    downloads = _pending_downloads(inputs, catalog)
    remedy = "set HF_HOME to a folder on a larger disk"
    return [
        *_memory_problems(resources, catalog),
        *disk_problems(resources, catalog),
        *_merged_model_problems(outputs, catalog),
        *free_disk_problems(downloads, Path(constants.HF_HUB_CACHE), remedy),
        *cache_problems(resources, is_downloading=any(downloads.values())),
    ]


def _memory_problems(resources: Mapping[Node, Resources], catalog: DataCatalog) -> list[str]:
    """Compare free host memory with what the largest model on the CPU takes."""
    on_cpu = [node for node, required in resources.items() if not required.devices]
    count = max((parameter_count_of(node, catalog) or 0 for node in on_cpu), default=0)
    required_bytes = cpu_memory_bytes(count)
    free = psutil.virtual_memory().available
    if not count or free >= required_bytes:
        return []
    return [
        f"about {gigabytes(required_bytes)} of memory are needed for a model of "
        f"{count / 1e9:.2f} billion parameters on the CPU, {gigabytes(free)} are free; close other "
        f"programs, or choose a smaller base_model"
    ]


def _merged_model_problems(outputs: Collection[str], catalog: DataCatalog) -> list[str]:
    """Compare free disk with the merged model, whose weights keep the types of the base's files."""
    base_model = catalog.get("base_model") if "merged_model" in outputs else None
    path = output_path(catalog.get("merged_model"))
    if path is None or not isinstance(base_model, StoresWeights):
        return []
    sizes = {"the merged model": base_model.weights_bytes()}
    return free_disk_problems(sizes, path.parent, "point its catalog entry elsewhere")


def _pending_downloads(inputs: Iterable[str], catalog: DataCatalog) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in inputs:
        dataset = catalog.get(name)
        if isinstance(dataset, Downloads):
            sizes[f"the download of {name}"] = dataset.pending_download_bytes()
    return sizes
