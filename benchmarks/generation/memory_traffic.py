"""How fast a device reads its memory, and how much a step of generation must read at least."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

#: Two buffers of this size exceed every cache, and fit beside no model.
COPIED_BYTES = {"cuda": 2_000_000_000, "cpu": 500_000_000}
COPIES = 10


def measure_bandwidth(device: str) -> float:
    """Return bytes a second of large copies, reads and writes added."""
    import torch
    from torch.utils.benchmark import Timer

    size = COPIED_BYTES[device]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # waits for the GPU
    timer = Timer("target.copy_(source)", globals={"source": source, "target": target})
    seconds = timer.timeit(COPIES).mean
    del source, target, timer
    if device == "cuda":
        # the model may need all of it
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return 2 * size / seconds


def weight_bytes(model: Any) -> int:
    """Return the bytes of all weights that a step reads, including an unmerged adapter.

    An embedding that is not also the head's matrix is left out: a step reads one row a sequence.
    """
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    sizes = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}
    if embedding is not head:
        del sizes[embedding.data_ptr()]
    return sum(sizes.values())


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.buffers()
    for weight in model.parameters():
        yield weight
        # bitsandbytes' scales of blocks, and the scales of those
        state = getattr(weight, "quant_state", None)
        while state is not None:
            yield state.absmax
            state = state.state2 if state.nested else None


def cache_bytes_per_token(model: Any, *, is_int8: bool) -> int:
    """Return the bytes of a token's keys and values in all layers.

    Their type is that of the norms, or int8 with four bytes for the scale of each vector.
    """
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    element = next(w.element_size() for name, w in model.named_parameters() if "norm" in name)
    vector = head + 4 if is_int8 else head * element
    return int(text.num_hidden_layers * 2 * text.num_key_value_heads * vector)


def bytes_to_read(
    lengths: Sequence[tuple[int, int]], steps: int, weights: int, token: int
) -> tuple[int, int]:
    """Return the bytes of weights, and of keys and values, that decoding must read at least.

    Args:
        lengths: Tokens of each prompt and its answer, whose first token comes from the prefill.
        steps: Number of steps; each reads all weights.
        weights: Bytes of the weights.
        token: Bytes of a token's keys and values. Attention windows are taken as unlimited.
    """
    read = sum(
        (answer - 1) * prompt + (answer - 1) * answer // 2 for prompt, answer in lengths if answer
    )
    return steps * weights, read * token
