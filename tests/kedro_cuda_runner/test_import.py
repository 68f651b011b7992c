"""What the runner takes along: it serves any project and costs little where no device is needed."""

import json
import subprocess
import sys

CODE = """
import json, sys
import kedro_cuda_runner
{more}
print(json.dumps(sorted(sys.modules)))
"""
HEAVY = ("torch", "mlflow", "transformers", "datasets", "pyarrow", "pandas", "numpy", "pynvml")
RUN = """
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from {module} import {runner}
nodes = pipeline([node(sorted, "a", "b")])
{runner}().run(nodes, DataCatalog({{"a": MemoryDataset([2, 1])}}))
"""


def modules_after(environment, more=""):
    said = subprocess.run(
        [sys.executable, "-c", CODE.format(more=more)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(json.loads(said.splitlines()[-1]))


def top_level(modules):
    return {name.partition(".")[0] for name in modules}


def of_project(modules):
    """Return the project's modules outside of the runner."""
    return {
        name
        for name in modules
        if name.startswith("ja_instruct.") and not name.startswith("kedro_cuda_runner")
    }


def test_import_is_light_and_knows_no_project(subprocess_environment):
    modules = modules_after(subprocess_environment)
    assert "kedro_cuda_runner.scheduler" in modules
    assert not top_level(modules) & set(HEAVY)
    assert of_project(modules) == set()


def test_run_without_gpu_nodes_is_as_light_as_kedro_s(subprocess_environment):
    ours, theirs = (
        modules_after(subprocess_environment, RUN.format(module=module, runner=runner))
        for module, runner in (
            ("kedro_cuda_runner", "CudaRunner"),
            ("kedro.runner", "SequentialRunner"),
        )
    )
    assert not (top_level(ours) - top_level(theirs)) & set(HEAVY)
    assert of_project(ours) == set()


def test_process_of_a_node_is_as_light(subprocess_environment):
    modules = modules_after(
        subprocess_environment,
        "import kedro_cuda_runner.worker, kedro_cuda_runner.worker_catalog",
    )
    assert not top_level(modules) & set(HEAVY)
    assert of_project(modules) == set()
