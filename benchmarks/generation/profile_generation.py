r"""Where the batched engine spends its time: a prefill, by chunk size, and a step; their kernels.

    python benchmarks/generation/profile_generation.py --model /dev/shm/nf4 \
        --adapter /dev/shm/nf4-adapter

Not a comparison, but a starting point for optimization. Model and adapter are those of
``bench_generation.py``; the prompt is random tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.generation.product import EndlessModel, adapter_at, read_parameters
from ja_instruct.engine.backends import load_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ja_instruct.engine.batched import Batched

REPEATS, STEPS = 3, 20
KERNELS_SHOWN = 25


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Return the mean seconds of a call, after calls that compile and record."""
    return float(Timer("call()", globals={"call": call}).timeit(repeats).mean)


def print_kernels(title: str, call: Callable[[], object]) -> None:
    """Print the kernels that a call launches, longest total time first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    averages = profiler.key_averages()
    kernels = [kernel for kernel in averages if kernel.self_device_time_total]
    milliseconds = sum(kernel.self_device_time_total for kernel in kernels) / 1e3
    print(f"\n{title}: {sum(kernel.count for kernel in kernels)} kernels, {milliseconds:.2f} ms")
    print(averages.table(sort_by="self_device_time_total", row_limit=KERNELS_SHOWN))


def build(engine: Batched, max_num_seqs: int, length: int, prefill: int) -> Any:
    """Return an engine with a fixed batch size and prefill chunk size."""
    engine._prefill_chunk_size = prefill
    return engine._build(max_num_seqs, length)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="NF4 directory")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--environment", default="base", help="source of the parameters")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--weights", choices=["auto", "nf4", "bf16"], default="nf4")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8"], default="auto")
    parser.add_argument("--max-num-seqs", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=3072)
    parser.add_argument("--answer-tokens", type=int, default=328, help="tokens after the prompt")
    parser.add_argument("--new-tokens", type=int, default=1024, help="maximum length of an answer")
    parser.add_argument("--chunks", default="512,1024,2048,4096", help="prefill chunk sizes")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Load, time, print."""
    options = parse_arguments()
    changes = {
        "batching.weights": options.weights,
        "batching.kv_cache_dtype": options.kv_cache_dtype,
        "max_new_tokens": options.new_tokens,
        "device": options.device,
    }
    parameters, _ = read_parameters(options.environment, changes)
    model, adapter = EndlessModel.at(options.model), adapter_at(options.adapter)
    engine: Any = load_engine(model, adapter, parameters)
    length = options.prompt_tokens + options.new_tokens
    engine._weights = engine._prepare_model(options.max_num_seqs, length)
    engine._choose_sizes(options.max_num_seqs, length)
    vocabulary = engine._model.config.get_text_config().vocab_size
    prompt = torch.randint(10, vocabulary, (options.prompt_tokens,)).tolist()
    for chunk in map(int, options.chunks.split(",")):
        reader = build(engine, 1, length, chunk)
        seconds = seconds_of(lambda reader=reader: reader._prefill(0, prompt), REPEATS)
        print(f"prompt of {len(prompt)} tokens in chunks of {chunk}: {seconds:.3f} s", flush=True)
    del reader
    stepper = build(engine, options.max_num_seqs, length, chunk)
    position = options.prompt_tokens + options.answer_tokens
    stepper._positions.fill_(position)
    milliseconds = 1e3 * seconds_of(lambda: stepper._take_step(length), STEPS)
    print(f"step of {options.max_num_seqs} sequences at token {position}: {milliseconds:.2f} ms")
    if options.device == "cuda":
        print_kernels("step", lambda: stepper._take_step(length))
        print_kernels("prompt", lambda: stepper._prefill(0, prompt))


if __name__ == "__main__":
    main()
