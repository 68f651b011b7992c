"""How fast a device reads its memory, and what a step of generation must read of it at least."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

#: Twice as much is taken of the memory, less than any model that is measured takes.
COPIED_BYTES = {"cuda": 2_000_000_000, "cpu": 500_000_000}
COPIES = 10


def measure_bandwidth(device: str) -> float:
    """Return bytes a second, read and written together, of copies too big for any cache."""
    import torch

    size = COPIED_BYTES[device]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def wait() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    target.copy_(source)
    before = wait()
    for _ in range(COPIES):
        target.copy_(source)
    seconds = wait() - before
    del source, target
    if device == "cuda":
        # the model may need it all
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return 2 * size * COPIES / seconds


def weight_bytes(model: Any) -> int:
    """Return the bytes of all weights that a step reads, an adapter beside them included.

    Of an embedding that is not the head's matrix too, a step reads a row for each sequence: none of
    it counts.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    seen = set() if embedding is head else {embedding.data_ptr()}
    total = 0
    for tensor in _tensors(model):
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            total += tensor.nbytes
    return total


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.buffers()
    for weight in model.parameters():
        yield weight
        # bitsandbytes' blocks: their scales, and the scales of those
        state = getattr(weight, "quant_state", None)
        while state is not None:
            yield state.absmax
            state = state.state2 if state.nested else None


def cache_bytes_per_token(model: Any, *, is_int8: bool) -> int:
    """Return the bytes of a token's keys and values in all layers.

    They are as wide as the norms are, or a byte a number with four for each vector's scale.
    """
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    element = next(w.element_size() for name, w in model.named_parameters() if "norm" in name)
    vector = head + 4 if is_int8 else head * element
    return int(text.num_hidden_layers * 2 * text.num_key_value_heads * vector)


def bytes_to_read(
    lengths: Sequence[tuple[int, int]], steps: int, weights: int, token: int
) -> tuple[int, int]:
    """Return the bytes of weights and of keys and values that answering must read at least.

    Args:
        lengths: Tokens of each prompt and its answer, whose first comes of reading the prompt.
        steps: Steps that were taken, each of which reads all weights.
        weights: Bytes of them.
        token: Bytes of a token's keys and values.

    Returns:
        Both; windows are taken to be longer than texts are.
    """
    seen = sum(
        (answer - 1) * prompt + (answer - 1) * answer // 2 for prompt, answer in lengths if answer
    )
    return steps * weights, seen * token
