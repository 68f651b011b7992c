"""Generation by the product's engine; ``bench_generation.py`` starts it."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.kedro_runs import overridden, read_configuration
from benchmarks.harness.memory import PeakMemory, limit_memory
from benchmarks.harness.sides import run_job, write_result
from ja_instruct.engine.backends import load_engine
from ja_instruct.models.directory import ModelDirectory
from ja_instruct.models.json_files import read_provenance
from ja_instruct.pipelines.inference.parameters import InferenceParameters

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
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
        """Return the tokenizer, which decodes to numbers and has no EOS to end an answer with."""
        tokenizer: Any = super().load_tokenizer()
        tokenizer.eos_token = None
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


class ForwardClock(contextlib.ExitStack):
    """Watches, as a context, the calls of all models of a directory's class.

    A call with several tokens of a sequence is part of a prefill, one with a single token of each a
    step. A step that is a CUDA graph calls no model: the replays of graphs are counted.
    """

    def __init__(self, directory: Path) -> None:
        """Read the class from a directory's configuration."""
        import transformers

        super().__init__()
        config = json.loads((directory / "config.json").read_text("utf-8"))
        self._class: Any = getattr(transformers, config["architectures"][0])
        self._prefills: list[tuple[Any, Any]] = []
        self.first_call: float | None = None
        self.steps = 0
        #: The different numbers of sequences of the steps, in order.
        self.batch_sizes: list[int] = []

    def __enter__(self) -> Self:
        """Replace the model's ``forward`` and the graphs' ``replay``."""
        import torch

        clock, forward, replay = self, self._class.forward, torch.cuda.CUDAGraph.replay

        # transformers reads the signature
        @functools.wraps(forward)
        def watched(model: Any, *args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            return clock._call(ids, functools.partial(forward, model, *args, **kwargs))

        def counted(graph: Any) -> None:
            clock.steps += 1
            replay(graph)

        self.enter_context(mock.patch.object(self._class, "forward", watched))
        self.enter_context(mock.patch.object(torch.cuda.CUDAGraph, "replay", counted))
        return super().__enter__()

    def _call(self, ids: torch.Tensor, forward: Callable[[], Any]) -> Any:
        import torch

        if self.first_call is None:
            self.first_call = time.perf_counter()
        if ids.shape[1] == 1:
            if ids.shape[0] not in self.batch_sizes:
                self.batch_sizes.append(ids.shape[0])
            self.steps += not (ids.is_cuda and torch.cuda.is_current_stream_capturing())
            return forward()
        before = self._now(ids)
        result = forward()
        self._prefills.append((before, self._now(ids)))
        return result

    def _now(self, ids: torch.Tensor) -> Any:
        """Return the time on the device, which lags behind the host."""
        import torch

        if not ids.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def prefill_seconds(self) -> float:
        """Return the seconds of all prefills, the model's calls alone."""
        import torch

        if self._prefills and not isinstance(self._prefills[0][0], float):
            torch.cuda.synchronize()
            return sum(before.elapsed_time(after) for before, after in self._prefills) / 1e3
        return float(sum(after - before for before, after in self._prefills))


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
