"""Quantizing a model that is published in float32, against the same one in bfloat16.

    python benchmarks/quantization/bench_float32.py
    python benchmarks/quantization/bench_float32.py --device cuda --layers 46

google/gemma-2-27b is published in float32: 24 files, 109 GB. Both models have its shape with fewer
layers (46 are the whole of it), in sparse files: their weights are zero and take no space on the
disk, but are read like any others. The node ``quantize`` runs with ``conf/base``'s parameters, and
its model is saved; the measurement that follows it would divide by zero. ``ratio`` is the peak of
host memory, without mapped files, of float32 over that of bfloat16.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import read_configuration
from benchmarks.harness.memory import PeakMemory
from benchmarks.harness.random_models import make_sparse_model
from benchmarks.harness.recording import print_table, record
from benchmarks.harness.sides import run_job, run_side, write_result

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LAYERS = 46  # of gemma-2-27b
DTYPES = ("float32", "bfloat16")
COLUMNS = {
    "source GB": "source_gb:.1f",
    "written GB": "written_gb:.1f",
    "download GB, whole": "whole_source_gb:.1f",
    "s, saved": "seconds:.0f",
    "private GB": "memory.host_private_gb",
    "GPU GB": "memory.torch_allocated_gb",
    "status": "status",
}


def size_gb(directory: str) -> float:
    """Return the size of a directory's weights in 10⁹ bytes, by its files."""
    from ja_instruct.datasets import ModelDirectoryDataset

    return ModelDirectoryDataset(filepath=directory).weights_bytes() / 1e9


def quantize(job: dict[str, Any], path: Path) -> None:
    """Quantize and save; write the figures to ``path``."""
    from ja_instruct.datasets import ModelDirectoryDataset, QuantizedModelDataset
    from ja_instruct.pipelines.quantization import nodes
    from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

    section = read_configuration("base")["parameters"]["quantization"]
    parameters = QuantizationParameters(**{**section, "device": job["device"]})
    started = time.perf_counter()
    with PeakMemory() as memory:
        model = ModelDirectoryDataset(filepath=job["model"]).load()
        QuantizedModelDataset(filepath=job["out"]).save(nodes.quantize(model, parameters))
        result = {"seconds": time.perf_counter() - started, "memory": memory.figures()}
    write_result(path, {**result, "written_gb": size_gb(job["out"])})


def main() -> None:
    """Make both models, quantize them one after the other, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="the 4-bit models; default: a temporary one")
    parser.add_argument("--seconds", type=float, default=540, help="time limit of a side")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for dtype in DTYPES:
            model, out = folder / dtype, folder / "nf4"
            per_layer, other = make_sparse_model(model, "gemma-2-27b", dtype, options.layers)
            job = {"model": str(model), "out": str(out), "device": options.device}
            result = run_side(Path(__file__), job, folder / "results", dtype, options.seconds)
            rows[dtype] = {
                **result,
                "source_gb": size_gb(str(model)),
                "whole_source_gb": (LAYERS * per_layer + other) / 1e9,
            }
            shutil.rmtree(out, ignore_errors=True)
    print_table(rows, COLUMNS)
    peaks = [rows[dtype].get("memory", {}).get("host_private_gb") for dtype in DTYPES]
    ratio = round(peaks[0] / peaks[1], 3) if all(peaks) else None
    record("quantization_float32", {"ratio": ratio, "layers": options.layers, "sides": rows})


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].endswith(".job.json"):
        run_job(quantize)
    else:
        main()
