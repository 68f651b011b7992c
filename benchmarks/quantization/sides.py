"""Quantizes a model, the original's way or ours; ``bench_quantization.py`` starts it."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import MemoryDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.character_tokenizer import japanese_characters
from benchmarks.harness.kedro_runs import NodeClock, run_pipeline
from benchmarks.harness.memory import PeakMemory
from benchmarks.harness.sides import run_job, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")
#: For the perplexity. Time and memory do not depend on the texts.
TEXTS, TEXT_TOKENS = 40, 500


def quantize_as_the_original(job: dict[str, Any], clock: NodeClock) -> None:
    """Load the model in 4 bits and save it."""
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
    clock.end("save quantized_model")


def quantize_as_the_product(job: dict[str, Any], clock: NodeClock) -> None:
    """Run the pipeline by the product's catalog, except for the two model directories."""
    from ja_instruct.datasets import ModelDirectoryDataset, QuantizedModelDataset
    from ja_instruct.pipelines.quantization import create_pipeline

    generator = random.Random(0)
    characters = japanese_characters()
    texts = ["".join(generator.choices(characters, k=TEXT_TOKENS)) for _ in range(TEXTS)]
    run_pipeline(
        create_pipeline(),
        {
            "base_model": ModelDirectoryDataset(filepath=job["model"]),
            "quantized_model": QuantizedModelDataset(filepath=job["out"]),
            "perplexity_texts": MemoryDataset([{"text": text} for text in texts]),
        },
        environment=job["environment"],
        changes={"quantization.device": job["device"], **job["changes"]},
        clock=clock,
    )


WAYS: dict[str, Callable[[dict[str, Any], NodeClock], None]] = {
    "original": quantize_as_the_original,
    "ours": quantize_as_the_product,
}


def quantize(job: dict[str, Any], path: Path) -> None:
    """Do one job and write the figures to ``path`` after each phase."""
    result: dict[str, Any] = {}

    def report(phase: str) -> None:
        result.update(phases=clock.phases, memory=memory.figures())
        if phase.endswith("save quantized_model"):
            # later phases only evaluate the result
            result.update(until_saved=list(clock.phases), memory_until_saved=result["memory"])
        write_result(path, result)

    with PeakMemory() as memory:
        clock = NodeClock(report)
        WAYS[job["way"]](job, clock)
        written = sum(file.stat().st_size for file in Path(job["out"]).glob("*.safetensors"))
        result.update(written_gb=round(written / 1e9, 3), memory=memory.figures())
    write_result(path, result)


if __name__ == "__main__":
    run_job(quantize)
