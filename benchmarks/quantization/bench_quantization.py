"""Quantizing a model of Gemma 2 27B's shape, the original's way and ours: time and memory.

    python benchmarks/quantization/bench_quantization.py --model /models/bf16 --out /dev/shm/nf4

``original`` is ``from_pretrained`` with ``device_map="auto"`` and a quantization configuration, in
float16, the type that transformers of December 2024 took for none, then ``save_pretrained`` of
model and tokenizer; ``ours`` the product's pipeline ``quantization`` with ``conf/base``'s
parameters, run by Kedro on random texts. The 16-bit model, random weights, is created if it is
missing. Each output, 15.6 GB at full size, replaces the one before at ``--out``.

*saved* counts until the 4-bit weights are saved; ours then also evaluates the result.
``ratio`` is our peak of GPU memory over the original's. ``--set ours:NAME=VALUE`` changes a
parameter.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.memory import PeakMemory
from benchmarks.harness.random_models import SHAPES, find_or_make, japanese_characters, nf4_config
from benchmarks.harness.recording import print_table, record
from benchmarks.harness.sides import (
    Side,
    apply_settings,
    choose,
    make_parser,
    read_sides,
    run_job,
    run_side,
    working_folder,
    write_result,
)

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SIDES: dict[str, Side] = {name: {"way": name, "changes": {}} for name in ("ours", "original")}
#: For the perplexity. Time and memory do not depend on the texts.
TEXTS, TEXT_TOKENS = 40, 500
COLUMNS = {
    "s, saved": "seconds_until_saved",
    "s, all": "seconds",
    "GPU GB, saved": "memory_until_saved.torch_allocated_gb",
    "GPU GB, all": "memory.torch_allocated_gb",
    "NVML GB, saved": "memory_until_saved.nvml_device_gb",
    "NVML GB, all": "memory.nvml_device_gb",
    "private GB": "memory_until_saved.host_private_gb",
    "resident GB": "memory_until_saved.host_resident_gb",
    "status": "status",
}


def quantize_as_the_original(job: dict[str, Any], report: Callable[[], None]) -> None:
    """Load the model in 4 bits and save it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        dtype=torch.float16,
        device_map="auto" if job["device"] == "cuda" else "cpu",
        quantization_config=nf4_config(),
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    model.save_pretrained(job["out"])
    tokenizer.save_pretrained(job["out"])
    report()


def quantize_as_the_product(job: dict[str, Any], report: Callable[[], None]) -> None:
    """Run the pipeline by the product's catalog, except for the two model directories."""
    from kedro.framework.hooks import hook_impl
    from kedro.io import MemoryDataset

    from benchmarks.harness.kedro_runs import run_pipeline
    from ja_instruct.datasets import ModelDirectoryDataset, QuantizedModelDataset
    from ja_instruct.pipelines.quantization import create_pipeline

    class SaveHook:
        @hook_impl
        def after_dataset_saved(self, dataset_name: str) -> None:
            if dataset_name == "quantized_model":
                report()

    generator, characters = random.Random(0), japanese_characters()
    texts = ["".join(generator.choices(characters, k=TEXT_TOKENS)) for _ in range(TEXTS)]
    run_pipeline(
        create_pipeline(),
        {
            "base_model": ModelDirectoryDataset(filepath=job["model"]),
            "quantized_model": QuantizedModelDataset(filepath=job["out"]),
            "perplexity_texts": MemoryDataset([{"text": text} for text in texts]),
        },
        changes={"quantization.device": job["device"], **job["changes"]},
        hook=SaveHook(),
    )


def quantize(job: dict[str, Any], path: Path) -> None:
    """Do one job and write the figures to ``path``."""
    result: dict[str, Any] = {}
    started = time.perf_counter()

    def measure(when: str) -> None:
        result[f"seconds{when}"] = time.perf_counter() - started
        result[f"memory{when}"] = memory.figures()
        write_result(path, result)

    with PeakMemory() as memory:
        ways = {"original": quantize_as_the_original, "ours": quantize_as_the_product}
        ways[job["way"]](job, lambda: measure("_until_saved"))
        measure("")


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Return a side's figures."""
    seconds = result.get("seconds_until_saved")
    return {
        "status": result["status"],
        "seconds": round(result["seconds"], 1) if "seconds" in result else None,
        "seconds_until_saved": round(seconds, 1) if seconds else None,
        "memory": result.get("memory", {}),
        "memory_until_saved": result.get("memory_until_saved", {}),
    }


def main() -> None:
    """Make the model, run the sides, print and keep the figures."""
    parser = make_parser(__doc__, SHAPES, SIDES, seconds=270)
    parser.add_argument("--out", type=Path, help="the 4-bit directory")
    options = parser.parse_args()
    sides = apply_settings(SIDES, options.set, SIDES["ours"])
    with working_folder(options) as folder:
        out = (options.out or folder / "nf4").resolve()
        find_or_make(options.model, "bf16", options.shape, options.device)
        source_bytes = sum(file.stat().st_size for file in options.model.glob("*.safetensors"))
        for name in choose(options.sides, sides):
            shutil.rmtree(out, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            job = {**sides[name], "model": str(options.model), "out": str(out)}
            job["device"] = options.device
            run_side(Path(__file__), job, folder, name, options.seconds)
        results = read_sides(folder, sides)
    rows = {name: summarize(one) for name, one in results.items()}
    print_table(rows, COLUMNS)
    peaks = [rows.get(name, {}).get("memory", {}).get("torch_allocated_gb") for name in SIDES]
    result = {
        "ratio": round(peaks[0] / peaks[1], 3) if all(peaks) else None,
        "model": options.shape,
        "source_gb": round(source_bytes / 1e9, 2),
        "sides": rows,
    }
    record("quantization", result, keep=options.shape != "tiny")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].endswith(".job.json"):
        run_job(quantize)
    else:
        main()
