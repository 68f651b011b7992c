"""How many sequences fit into memory, by arithmetic on the model's sizes.

All sizes are in bytes. The estimate is high, with a margin for fragmentation; if it is too low
nevertheless, ``Batched`` retries with a smaller batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.memory.estimates import vector_bytes
from ja_instruct.models.safetensors import read_headers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ja_instruct.memory.estimates import ModelShape
    from ja_instruct.models.directory import ModelDirectory

# Per word of the vocabulary and sequence of a step: logits in the model's dtype, after the soft cap
# and in float32, and the sampler's state. Twice the 12 bytes by which PyTorch's memory grew with
# each sequence of a step of gemma-2-27b's shape, captured as a CUDA graph.
BYTES_PER_LOGIT = 24
# Attention scores that exist at once, in two steps of the softmax
ATTENTION_BYTES = 2 * 4 * 2**24
# Per token and position of the causal mask: their distance in 64 bits, the boolean masks and the
# additive masks of both layer types
BYTES_PER_MASKED_PAIR = 16
USABLE_SHARE = 0.95
# Prefill chunk sizes: the largest one whose working memory is at most a share of the free memory
PREFILL_TOKENS = (4096, 2048, 1024)
PREFILL_SHARE = 0.05
CPU_SHARE = 0.5


@dataclass(frozen=True)
class EngineSizes:
    """The sizes that determine the memory of ``Engine``.

    Attributes:
        weight_bytes: Of a number in the dtype that the model computes in.
        cache_token_bytes: Of the KV cache, per token.
    """

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    weight_bytes: int
    cache_token_bytes: int

    @classmethod
    def of_shape(cls, shape: ModelShape, *, int8_cache: bool = False) -> EngineSizes:
        """Return the sizes of a model that is not loaded, computed in bfloat16."""
        heads = shape.key_value_heads
        vector = vector_bytes(shape.key_value_size // heads, 2, is_int8=int8_cache)
        return cls(
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            vocab_size=shape.vocab_size,
            weight_bytes=2,
            cache_token_bytes=len(shape.windows) * 2 * heads * vector,
        )

    @classmethod
    def of_model(cls, model: PreTrainedModel, *, int8_cache: bool = False) -> EngineSizes:
        """Return the sizes of a transformers model, or one wrapped by PEFT."""
        from ja_instruct.engine.kv_cache import bytes_per_token

        text = model.config.get_text_config()
        embedding: Any = model.get_input_embeddings()
        dtype = embedding.weight.dtype
        return cls(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            vocab_size=text.vocab_size,
            weight_bytes=dtype.itemsize,
            cache_token_bytes=bytes_per_token(model.config, dtype, is_int8=int8_cache),
        )

    @property
    def token_activation_bytes(self) -> int:
        """Activations of a layer, per token."""
        return self.weight_bytes * (4 * self.intermediate_size + 8 * self.hidden_size)

    def cache_bytes(self, max_num_seqs: int, length: int) -> int:
        """Return the bytes of the KV cache."""
        return max_num_seqs * length * self.cache_token_bytes

    def sequence_bytes(self, length: int) -> int:
        """Return the bytes of a sequence of ``length`` tokens, including its KV cache."""
        return (
            self.cache_bytes(1, length)
            + self.vocab_size * BYTES_PER_LOGIT
            + self.token_activation_bytes
            + length * (8 + BYTES_PER_MASKED_PAIR)
        )

    def working_bytes(self, prefill_chunk_size: int, length: int) -> int:
        """Return the bytes of prefill, which do not depend on the number of sequences."""
        tokens = min(prefill_chunk_size, length)
        return (
            tokens * self.token_activation_bytes
            + tokens * length * BYTES_PER_MASKED_PAIR
            + ATTENTION_BYTES
            # the largest matrix dequantized, and the next
            + 2 * self.weight_bytes * self.hidden_size * self.intermediate_size
        )

    def prefill_chunk_size(self, wanted: int | None, free_bytes: int, length: int) -> int:
        """Return the prefill chunk size: ``wanted``, or by the memory beside the loaded weights.

        ``length`` is that of the longest prompt with its answer, in tokens.
        """
        if wanted is not None:
            return wanted
        room = PREFILL_SHARE * free_bytes
        fitting = (one for one in PREFILL_TOKENS if self.working_bytes(one, length) <= room)
        return next(fitting, PREFILL_TOKENS[-1])

    def max_num_seqs_that_fit(self, free_bytes: int, prefill_chunk_size: int, length: int) -> int:
        """Return how many sequences of ``length`` tokens fit beside the weights, possibly 0."""
        room = USABLE_SHARE * free_bytes - self.working_bytes(prefill_chunk_size, length)
        return max(0, int(room // self.sequence_bytes(length)))


def free_bytes(device: torch.device, limit_gb: float | None) -> int:
    """Return the memory of a device that sequences can use.

    ``limit_gb`` is the total memory of this process on a GPU, None for no limit. Only a share of a
    CPU's memory counts, so that other processes keep theirs.
    """
    if device.type == "cpu":
        import psutil

        return int(CPU_SHARE * psutil.virtual_memory().available)
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    # memory that the allocator has reserved but does not use is free as well
    free += torch.cuda.memory_reserved(device) - held
    return free if limit_gb is None else min(free, round(limit_gb * 1e9) - held)


def bytes_of_merging(model: torch.nn.Module, adapter: ModelDirectory | None) -> tuple[int, int]:
    """Return by how much a 4-bit model grows in bfloat16, and the temporary memory of merging."""
    from bitsandbytes.nn.modules import Linear4bit

    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    sizes = [layer.in_features * layer.out_features for layer in layers]
    growth = sum(2 * size - layer.weight.nbytes for size, layer in zip(sizes, layers, strict=True))
    if adapter is None:
        return growth, 0
    factors = sum(math.prod(one.shape) for one in read_headers(adapter.path).values())
    # in float32: the factors, and their product as it is and scaled
    return growth, 4 * factors + 2 * 4 * max(sizes, default=0)
