r"""Where the time of the batched engine goes: a prompt, by the size of its pieces, and a step.

    python benchmarks/generation/profile_generation.py --model /dev/shm/nf4 \
        --adapter /dev/shm/nf4-adapter

No comparison, but what to look at before changing something: seconds for a prompt in pieces of each
size, milliseconds for a step of a full batch, and the kernels of either, by time. The model and
the adapter are those that ``bench_generation.py`` makes; the prompt is random tokens.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch.profiler import ProfilerActivity, profile

from benchmarks.generation.endless_model import EndlessModel, adapter_at
from benchmarks.generation.product import read_parameters
from ja_instruct.engine.backends import load_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ja_instruct.engine.batched import Batched

REPEATS, STEPS = 3, 20
KERNELS_SHOWN = 25


def wait() -> float:
    """Return the time when the device has done all it was told to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Return the mean of some calls, after one that compiles and records."""
    call()
    before = wait()
    for _ in range(repeats):
        call()
    return (wait() - before) / repeats


def print_kernels(title: str, call: Callable[[], object]) -> None:
    """Print what a call launches on a GPU: number and milliseconds by name, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        wait()
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels[event.name].append(event.device_time / 1e3)
    rows = sorted(kernels.items(), key=lambda row: -sum(row[1]))
    count, whole = sum(len(times) for _, times in rows), sum(sum(times) for _, times in rows)
    print(f"\n{title}: {count} kernels, {whole:.2f} ms")
    for name, times in rows[:KERNELS_SHOWN]:
        print(f"{len(times):>7}{sum(times):>10.3f} ms  {name[:90]}")


def build(engine: Batched, max_num_seqs: int, length: int, prefill: int) -> Any:
    """Return an engine with a fixed batch size."""
    engine._prefill_chunk_size = prefill
    return engine._build(max_num_seqs, length)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="NF4 directory")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--environment", default="base", help="whose parameters are taken")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--weights", choices=["auto", "nf4", "bf16"], default="nf4")
    parser.add_argument("--kv-cache-dtype", choices=["auto", "int8"], default="auto")
    parser.add_argument("--max-num-seqs", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=3072)
    parser.add_argument("--answered", type=int, default=328, help="tokens behind the prompt")
    parser.add_argument("--new-tokens", type=int, default=1024, help="that there is room for")
    parser.add_argument("--pieces", default="512,1024,2048,4096")
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
    parameters, texts = read_parameters(options.environment, changes)
    model, adapter = EndlessModel.at(options.model), adapter_at(options.adapter)
    engine: Any = load_engine(
        model, adapter, parameters, stop_at_end_of_turn=texts.format == "chat_template"
    )
    length = options.prompt_tokens + options.new_tokens
    engine._weights = engine._prepare_model(options.max_num_seqs, length)
    engine._choose_sizes(options.max_num_seqs, length)
    vocabulary = engine._model.config.get_text_config().vocab_size
    prompt = torch.randint(10, vocabulary, (options.prompt_tokens,)).tolist()
    for pieces in map(int, options.pieces.split(",")):
        reader = build(engine, 1, length, pieces)
        seconds = seconds_of(lambda reader=reader: reader._prefill(0, prompt), REPEATS)
        print(f"prompt of {len(prompt)} tokens in pieces of {pieces}: {seconds:.3f} s", flush=True)
    del reader
    stepper = build(engine, options.max_num_seqs, length, pieces)
    seen = options.prompt_tokens + options.answered
    stepper._positions.fill_(seen)
    milliseconds = 1e3 * seconds_of(lambda: stepper._take_step(length), STEPS)
    print(f"step of {options.max_num_seqs} sequences near {seen} tokens: {milliseconds:.2f} ms")
    if options.device == "cuda":
        print_kernels("step", lambda: stepper._take_step(length))
        print_kernels("prompt", lambda: stepper._prefill(0, prompt))


if __name__ == "__main__":
    main()
