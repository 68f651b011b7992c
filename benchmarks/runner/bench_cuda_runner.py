"""What CudaRunner adds to a node, against SequentialRunner.

    python benchmarks/runner/bench_cuda_runner.py [--libraries torch,transformers] [--nodes 3]

A chain of nodes with the tag ``gpu``, each of which imports the libraries and multiplies matrices
on the device, and a chain without the tag run under both runners, with an MLflow run open. Under
SequentialRunner the libraries are imported before the timed run. Under CudaRunner each node starts
a process, which imports them again. The allowance is that import, timed in fresh interpreters, and
2 seconds; ``ratio`` is the added time over it. Without a CUDA device the CPU computes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.recording import print_table, record
from benchmarks.runner.nodes import add_one, multiply
from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.devices import NoDevicesError, default_layer

ALLOWED_SECONDS = 2.0
PLAIN_NODES = 300


def chain(count: int, *, tags: str | None) -> Pipeline:
    """Return nodes that run one after another; those with the tag ``gpu`` use the device."""
    function, inputs = (multiply, ["libraries", "params:resources"]) if tags else (add_one, [])
    nodes = [
        Node(function, [*inputs, f"number_{i}"], f"number_{i + 1}", name=f"node_{i}", tags=tags)
        for i in range(count)
    ]
    return Pipeline(nodes)


def seconds_per_node(runner: Any, pipeline: Pipeline, data: dict[str, Any]) -> float:
    """Return the wall time of a run over its nodes."""
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in data.items()})
    started = time.perf_counter()
    runner.run(pipeline, catalog)
    return (time.perf_counter() - started) / len(pipeline.nodes)


def import_seconds(libraries: str) -> float:
    """Return how long a fresh interpreter takes to import the libraries, without its own start."""
    code = f"import time; t = time.perf_counter(); import {libraries}; print(time.perf_counter()-t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    return statistics.median(times)


def main() -> None:
    """Time both sides in turn, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--libraries", default="torch,transformers,peft,trl,bitsandbytes,datasets")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    importing = import_seconds(options.libraries)
    try:
        device = default_layer().find()[0].name
    except NoDevicesError:
        device = "CPU"
    data = {
        "libraries": options.libraries,
        "params:resources": {"gpu": {"devices": int(device != "CPU")}},
        "number_0": 0,
    }
    sides = {"SequentialRunner": SequentialRunner(), "CudaRunner": CudaRunner()}
    chains = {"gpu": chain(options.nodes, tags="gpu"), "plain": chain(PLAIN_NODES, tags=None)}
    times: dict[str, dict[str, list[float]]] = {
        side: {kind: [] for kind in chains} for side in sides
    }
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder)}/mlflow.db")
        with mlflow.start_run():
            for runner in sides.values():  # imports here, compiled bytecode and file cache there
                seconds_per_node(runner, chain(1, tags="gpu"), data)
            for _ in range(options.runs):
                for side, runner in sides.items():
                    for kind, pipeline in chains.items():
                        times[side][kind].append(seconds_per_node(runner, pipeline, data))
    seconds = {
        side: {kind: statistics.median(values) for kind, values in by_kind.items()}
        for side, by_kind in times.items()
    }
    sequential, ours = (by_kind["gpu"] for by_kind in seconds.values())
    allowed = importing + ALLOWED_SECONDS
    print_table(seconds, {"s a GPU node": "gpu:.3f", "s a plain node": "plain:.6f"})
    result = {
        "ratio": round((ours - sequential) / allowed, 3),
        "device": device,
        "import_seconds": round(importing, 3),
        "seconds_per_node": seconds,
        "allowed_seconds_per_node": round(allowed, 3),
        "nodes": options.nodes,
        "runs": options.runs,
    }
    record("cuda_runner", result)


if __name__ == "__main__":
    main()
