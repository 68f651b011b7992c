"""What CudaRunner adds to a node, against SequentialRunner.

    python benchmarks/runner/bench_cuda_runner.py [--libraries torch,transformers] [--nodes 3]

A chain of nodes with the tag ``gpu``, each of which imports the libraries and multiplies matrices
on the device, runs under both runners in this process, with an MLflow run open. Under
SequentialRunner only the first imports; it runs once before the timed run, as if the session had
used the libraries already. Under CudaRunner each node starts a process, which imports them anew.
Allowed is the import of the libraries, timed in interpreters of their own, and 2 seconds. Then a
chain of nodes without the tag runs under both. Without a CUDA device the nodes compute on the CPU.
The last line is JSON; its ratio is what a node costs over what it may cost.
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

from benchmarks.harness.recording import record
from benchmarks.runner.nodes import add_one, multiply
from kedro_cuda_runner import CudaRunner
from kedro_cuda_runner.devices import NoDevicesError, default_layer

ALLOWED_SECONDS = 2.0
PLAIN_NODES = 300


def gpu_chain(count: int) -> Pipeline:
    """Return nodes with the tag that run one after another."""
    return Pipeline(
        [
            Node(
                multiply,
                ["libraries", "params:resources", f"number_{i}"],
                f"number_{i + 1}",
                name=f"multiply_{i}",
                tags="gpu",
            )
            for i in range(count)
        ]
    )


def plain_chain(count: int) -> Pipeline:
    """Return nodes without the tag."""
    return Pipeline(
        [Node(add_one, f"number_{i}", f"number_{i + 1}", name=f"add_{i}") for i in range(count)]
    )


def seconds_of(runner: Any, pipeline: Pipeline, **data: Any) -> float:
    """Return the wall time of a run."""
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in data.items()})
    started = time.perf_counter()
    runner.run(pipeline, catalog)
    return time.perf_counter() - started


def import_seconds(libraries: str) -> float:
    """Return how long a fresh interpreter takes to import the libraries, without its own start."""
    code = f"import time; t = time.perf_counter(); import {libraries}; print(time.perf_counter()-t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    return statistics.median(times)


def main() -> None:
    """Time both sides in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--libraries", default="torch,transformers,peft,trl,bitsandbytes,datasets")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    try:
        device = default_layer().find()[0].name
    except NoDevicesError:
        device = "CPU"
    data = {
        "libraries": options.libraries,
        "params:resources": {"gpu": {"devices": int(device != "CPU")}},
        "number_0": 0,
    }
    importing = import_seconds(options.libraries)
    sides = {"SequentialRunner": SequentialRunner(), "CudaRunner": CudaRunner()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    plain: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder)}/mlflow.db")
        with mlflow.start_run():
            for runner in sides.values():  # imports here, compiled bytecode and file cache there
                seconds_of(runner, gpu_chain(1), **data)
            for _ in range(options.runs):
                for side, runner in sides.items():
                    times[side].append(seconds_of(runner, gpu_chain(options.nodes), **data))
                    plain[side].append(seconds_of(runner, plain_chain(PLAIN_NODES), number_0=0))
    node_seconds = {side: statistics.median(times[side]) / options.nodes for side in sides}
    plain_ms = {side: 1000 * statistics.median(plain[side]) / PLAIN_NODES for side in sides}
    added = node_seconds["CudaRunner"] - node_seconds["SequentialRunner"]
    allowed = importing + ALLOWED_SECONDS
    print(f"{device}; importing {options.libraries}: {importing:.2f} s")
    print(f"{'':18} {'s a gpu node':>14} {'ms a plain node':>16}")
    for side in sides:
        print(f"{side:18} {node_seconds[side]:14.3f} {plain_ms[side]:16.3f}")
    print(f"added to a gpu node: {added:.2f} s of {allowed:.2f} s allowed")
    record(
        "cuda_runner",
        {
            "ratio": round(added / allowed, 3),
            "device": device,
            "import_seconds": round(importing, 3),
            "sequential_seconds_a_node": round(node_seconds["SequentialRunner"], 3),
            "cuda_runner_seconds_a_node": round(node_seconds["CudaRunner"], 3),
            "added_seconds_a_node": round(added, 3),
            "allowed_seconds_a_node": round(allowed, 3),
            "sequential_ms_a_plain_node": round(plain_ms["SequentialRunner"], 3),
            "cuda_runner_ms_a_plain_node": round(plain_ms["CudaRunner"], 3),
            "nodes": options.nodes,
            "runs": options.runs,
        },
    )


if __name__ == "__main__":
    main()
