"""Generation by the product's engine, loaded as the node ``answer_tasks`` loads it.

``bench_generation.py`` starts it. ``ForwardClock`` watches the engine from outside: *prepare* is
the time from loading to the first call of the model, in which weights are converted for decoding.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.forward_clock import ForwardClock
from benchmarks.harness.kedro_runs import overridden, read_configuration
from benchmarks.harness.memory import PeakMemory, limit_memory
from benchmarks.harness.sides import run_job, write_result
from ja_instruct.engine.backends import load_engine
from ja_instruct.models.directory import ModelDirectory, read_provenance
from ja_instruct.pipelines.inference.parameters import InferenceParameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class EndlessModel(ModelDirectory):
    """A model directory whose answers only end at ``max_new_tokens`` and decode to token ids.

    With random weights, answers end by chance and most tokens are in no tokenizer. So all sides do
    the same work, and answers differ as texts exactly if they differ as tokens.
    """

    @classmethod
    def at(cls, directory: Path) -> EndlessModel:
        """Return a directory written by ``quantization`` or like it; its files are not hashed."""
        provenance = read_provenance(directory)
        return cls(directory.resolve(), provenance["source"]["model_id"], provenance=provenance)

    def load_model(self, **kwargs: Any) -> PreTrainedModel:
        """Return the model, without stop tokens."""
        model = super().load_model(**kwargs)
        model.generation_config.eos_token_id = None
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer, which decodes to numbers."""
        tokenizer: Any = super().load_tokenizer()
        tokenizer.decode = lambda ids, **_: " ".join(str(int(token)) for token in ids)
        return tokenizer  # type: ignore[no-any-return]


def adapter_at(directory: Path) -> ModelDirectory:
    """Return an adapter's directory; its files are not hashed."""
    path = directory.resolve()
    return ModelDirectory(path, path.name, provenance=read_provenance(path))


def read_parameters(environment: str, changes: dict[str, Any]) -> InferenceParameters:
    """Return an environment's parameters of ``inference``, with changes."""
    configuration = read_configuration(environment)["parameters"]
    return InferenceParameters(**overridden(configuration["inference"], changes))


def generate(job: dict[str, Any], path: Path) -> None:
    """Answer the job's prompts and write the figures to ``path`` after each answer."""
    changes = {
        **({} if job["memory_gb"] is None else {"batching.memory_gb": job["memory_gb"]}),
        **job["changes"],
        "max_new_tokens": job["new_tokens"],
        "device": job["device"],
    }
    parameters = read_parameters(job["environment"], changes)
    prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))[: job["tasks"]]
    result: dict[str, Any] = {"parameters": parameters.model_dump(mode="json"), "answers": []}
    with PeakMemory() as memory, ForwardClock(Path(job["model"])) as clock:
        if job["memory_gb"] is not None:
            limit_memory(job["memory_gb"])
        model, adapter = EndlessModel.at(Path(job["model"])), adapter_at(Path(job["adapter"]))
        started = time.perf_counter()
        engine = load_engine(model, adapter, parameters)
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
                    **({"text": one.text} if job["keep_text"] else {}),
                }
            )
            result |= {
                "prepare_seconds": first - loaded,
                "generate_seconds": now - first,
                "steps": clock.steps,
                "batch_sizes": clock.batch_sizes,
                "memory": memory.figures(),
            }
            write_result(path, result)
        result["prefill_seconds"] = clock.prefill_seconds()
    write_result(path, result)


if __name__ == "__main__":
    run_job(generate)
