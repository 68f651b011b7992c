"""The package knows no project, and costs little where no device is used."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "mlflow", "transformers", "datasets", "pyarrow", "pandas", "numpy", "pynvml"}
RUN = """
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from {module} import {runner}
nodes = pipeline([node(sorted, "a", "b")])
{runner}().run(nodes, DataCatalog({{"a": MemoryDataset([2, 1])}}))
"""


def modules_after(environment, code):
    """Return the top-level modules that code has imported."""
    code += "\nimport json, sys\nprint(json.dumps([*sys.modules]))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import kedro_cuda_runner", set()),
        ("import kedro_cuda_runner.worker, kedro_cuda_runner.worker_catalog", set()),
        (
            RUN.format(module="kedro_cuda_runner", runner="CudaRunner"),
            RUN.format(module="kedro.runner", runner="SequentialRunner"),
        ),
    ],
    ids=["package", "process of a node", "run without GPU nodes"],
)
def test_imports(subprocess_environment, code, expected):
    modules = modules_after(subprocess_environment, code)
    usual = modules_after(subprocess_environment, expected) if expected else set()
    assert "kedro_cuda_runner" in modules
    assert not (modules - usual) & HEAVY
    assert "ja_instruct" not in modules
