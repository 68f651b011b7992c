"""Generation by the product's engine, loaded as its node ``answer_tasks`` loads it.

    python benchmarks/generation/product.py JOB RESULT

is what ``bench_generation.py`` starts. No answer ends early (``endless_model.py``). The engine is
watched from outside (``forward_clock.py``): *preparing* is all before the model is called first,
the weights brought into the form that steps are taken with; *reading* what reading prompts takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.endless_model import EndlessModel, adapter_at
from benchmarks.generation.forward_clock import ForwardClock
from benchmarks.generation.memory_traffic import (
    cache_bytes_per_token,
    measure_bandwidth,
    weight_bytes,
)
from benchmarks.harness.kedro_runs import overridden, read_configuration
from benchmarks.harness.peak_memory import PeakMemory
from benchmarks.harness.sides import write_result
from benchmarks.training.product import limit_memory
from ja_instruct.engine.backends import load_engine
from ja_instruct.pipelines.inference.parameters import InferenceParameters
from ja_instruct.prompts import PromptParameters


def read_parameters(
    environment: str, changes: dict[str, Any]
) -> tuple[InferenceParameters, PromptParameters]:
    """Return an environment's parameters, of ``inference`` some changed."""
    configuration = read_configuration(environment)["parameters"]
    inference = overridden(configuration["inference"], changes)
    return InferenceParameters(**inference), PromptParameters(**configuration["prompts"])


def changes_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters to change, by their names below ``inference``."""
    limit = {} if job["memory_gb"] is None else {"batching.memory_gb": job["memory_gb"]}
    return {
        **limit,
        **job["changes"],
        "max_new_tokens": job["new_tokens"],
        "device": job["device"],
    }


def generate(job: dict[str, Any], path: Path) -> None:
    """Answer the job's prompts and write what was measured to ``path``."""
    parameters, texts = read_parameters(job["environment"], changes_of(job))
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))[: job["tasks"]]
    result: dict[str, Any] = {"parameters": parameters.model_dump(mode="json"), "answers": []}
    with PeakMemory() as memory, ForwardClock(Path(job["model"])) as clock:
        result["bandwidth"] = measure_bandwidth(job["device"])
        if job["memory_gb"] is not None:
            limit_memory(job["memory_gb"])
        model = EndlessModel.at(Path(job["model"]))
        adapter = adapter_at(Path(job["adapter"]))
        started = time.perf_counter()
        engine = load_engine(
            model, adapter, parameters, stop_at_end_of_turn=texts.format == "chat_template"
        )
        loaded = time.perf_counter()
        result["load_seconds"] = round(loaded - started, 2)
        for position, one in engine.generate(prompts):
            now = time.perf_counter()
            first = clock.first_call if clock.first_call is not None else now
            result["answers"].append(
                {
                    "position": position,
                    "prompt_tokens": one.prompt_tokens,
                    "new_tokens": one.new_tokens,
                    "error": one.error,
                }
            )
            result |= {
                "preparing_seconds": first - loaded,
                "generate_seconds": now - first,
                "steps": clock.steps,
                "step_sizes": clock.sizes,
                "memory": memory.figures(),
            }
            write_result(path, result)
        result["reading_seconds"] = clock.reading_seconds()
        if clock.model is not None:
            result["weight_bytes"] = weight_bytes(clock.model)
            result["cache_bytes_per_token"] = cache_bytes_per_token(
                clock.model, is_int8=parameters.batching.has_int8_cache
            )
    write_result(path, result)


def main() -> None:
    """Do one job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    options = parser.parse_args()
    generate(json.loads(options.job.read_text("utf-8")), options.result)


if __name__ == "__main__":
    main()
