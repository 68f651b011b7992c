"""One way to quantize a model, timed, in a process of its own.

    python benchmarks/quantization/sides.py JOB RESULT

is what ``bench_quantization.py`` starts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kedro.framework.hooks import hook_impl
from kedro.io import MemoryDataset

from benchmarks.harness.character_tokenizer import japanese_characters
from benchmarks.harness.peak_memory import PeakMemory
from benchmarks.harness.sides import write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from kedro.pipeline.node import Node

os.environ.setdefault("HF_HUB_OFFLINE", "1")
QUANTIZED = "quantized_model"
#: What both models predict; which texts they are changes neither time nor memory.
TEXTS, TEXT_TOKENS = 40, 500
OVERHEAD = "before the first node"


class PhaseClock:
    """What each part of the work takes, reported as soon as it is over.

    As Kedro's hook it notes what each node takes, and what each of its outputs takes to be saved.
    """

    def __init__(self, memory: PeakMemory, path: Path) -> None:
        """Begin; results go to ``path``."""
        self._memory = memory
        self._path = path
        self._last = time.perf_counter()
        self.result: dict[str, Any] = {"phases": {}}

    def end(self, phase: str, *, saved: bool = False) -> None:
        """A part is over; ``saved``: it is the one that completes the 4-bit directory."""
        now = time.perf_counter()
        phases = self.result["phases"]
        phases[phase] = phases.get(phase, 0.0) + now - self._last
        self.result["memory"] = self._memory.figures()
        if saved:
            self.result["until_saved"] = list(phases)
            self.result["memory_until_saved"] = self.result["memory"]
        write_result(self._path, self.result)
        self._last = time.perf_counter()

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """What came before are Kedro and imports."""
        self.end(OVERHEAD if not self.result["phases"] else f"{node.name}: load")

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Computed."""
        self.end(f"{node.name}: run")

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, node: Node) -> None:
        """Saved, or left in memory."""
        self.end(f"{node.name}: save {dataset_name}", saved=dataset_name == QUANTIZED)


def quantize_as_the_original(job: dict[str, Any], clock: PhaseClock) -> None:
    """Load all in 4 bits, then save all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    clock.end("imports")
    model = AutoModelForCausalLM.from_pretrained(
        job["model"],
        device_map="auto" if job["device"] == "cuda" else "cpu",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        local_files_only=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    clock.end("quantize")
    model.save_pretrained(job["out"])
    tokenizer.save_pretrained(job["out"])
    clock.end("save", saved=True)


def quantize_as_the_product(job: dict[str, Any], clock: PhaseClock) -> None:
    """Run the pipeline by the product's catalog; only the two directories are the job's."""
    import yaml
    from kedro.framework.hooks.manager import _create_hook_manager

    from benchmarks.harness.kedro_runs import run_pipeline
    from ja_instruct.datasets import ModelDirectoryDataset, QuantizedModelDataset
    from ja_instruct.pipelines.quantization import create_pipeline

    chance = random.Random(0)
    texts = ["".join(chance.choices(japanese_characters(), k=TEXT_TOKENS)) for _ in range(TEXTS)]
    hooks = _create_hook_manager()
    hooks.register(clock)
    changes = {name: yaml.safe_load(value) for name, value in job["changes"].items()}
    catalog = run_pipeline(
        create_pipeline(),
        {
            "base_model": ModelDirectoryDataset(filepath=job["model"]),
            QUANTIZED: QuantizedModelDataset(filepath=job["out"]),
            "perplexity_texts": MemoryDataset([{"text": text} for text in texts]),
        },
        environment=job["environment"],
        changes={"quantization.device": job["device"], **changes},
        hooks=hooks,
    )
    clock.result["report"] = catalog["quantization_report"].load()


SIDES: dict[str, Callable[[dict[str, Any], PhaseClock], None]] = {
    "original": quantize_as_the_original,
    "ours": quantize_as_the_product,
}


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    job = json.loads(options.job.read_text("utf-8"))
    with PeakMemory() as memory:
        clock = PhaseClock(memory, options.result)
        SIDES[job["side"]](job, clock)
        written = sum(path.stat().st_size for path in Path(job["out"]).glob("*.safetensors"))
        clock.result |= {"written_gb": round(written / 1e9, 3), "memory": memory.figures()}
    write_result(options.result, clock.result)


if __name__ == "__main__":
    main()
