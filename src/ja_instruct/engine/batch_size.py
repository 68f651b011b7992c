"""How many sequences fit into memory side by side, by arithmetic on the model's sizes.

Everything is in bytes. It is an estimate from above, with a margin for what an allocator cannot
use; who finds it too low tries again with fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.memory.estimates import vector_bytes
from ja_instruct.models.safetensors import read_headers

if TYPE_CHECKING:
    import torch

    from ja_instruct.memory.estimates import ModelShape
    from ja_instruct.models.directory import ModelDirectory

# Of a vocabulary's width, for each sequence of a step: its logits in the model's type, bounded by a
# tanh, and in float32, and what the rules keep of a sequence. Twice the 12 bytes by which PyTorch's
# memory grew with each sequence of a step of gemma-2-27b's shape, recorded as a CUDA graph
BYTES_PER_LOGIT = 24
# Scores of the attention that are there at once, in two steps of the softmax
ATTENTION_BYTES = 2 * 4 * 2**24
# Of a pair of token and position in the mask: their distance in 64 bits, what may be seen, both
# kinds of layers
BYTES_PER_MASKED_PAIR = 16
USABLE_SHARE = 0.95
# Tokens of a prompt that are read at once: the most whose working memory is no more than a share of
# what is free, which sequences could have otherwise
PREFILL_TOKENS = (4096, 2048, 1024)
PREFILL_SHARE = 0.05
CPU_SHARE = 0.5


@dataclass(frozen=True)
class EngineSizes:
    """What the memory of ``Engine`` follows from.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        vocab_size: Columns of the logits.
        weight_bytes: Of a number that is computed with.
        cache_token_bytes: What a token takes of the cache.
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
    def of_model(cls, model: Any, *, int8_cache: bool = False) -> EngineSizes:
        """Return the sizes of a transformers model, or one wrapped by PEFT."""
        from ja_instruct.engine.kv_cache import bytes_per_token

        text = model.config.get_text_config()
        dtype = model.get_input_embeddings().weight.dtype
        return cls(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            vocab_size=text.vocab_size,
            weight_bytes=dtype.itemsize,
            cache_token_bytes=bytes_per_token(model.config, dtype, is_int8=int8_cache),
        )

    @property
    def token_activation_bytes(self) -> int:
        """What one token needs on its way through a layer."""
        return self.weight_bytes * (4 * self.intermediate_size + 8 * self.hidden_size)

    def cache_bytes(self, max_num_seqs: int, length: int) -> int:
        """Return the bytes of the cache."""
        return max_num_seqs * length * self.cache_token_bytes

    def slot_bytes(self, length: int) -> int:
        """Return what a sequence of ``length`` tokens takes, cache and all."""
        return (
            self.cache_bytes(1, length)
            + self.vocab_size * BYTES_PER_LOGIT
            + self.token_activation_bytes
            + length * (8 + BYTES_PER_MASKED_PAIR)
        )

    def working_bytes(self, prefill_chunk_size: int, length: int) -> int:
        """Return what reading a prompt in pieces takes, whatever the number of sequences."""
        tokens = min(prefill_chunk_size, length)
        return (
            tokens * self.token_activation_bytes
            + tokens * length * BYTES_PER_MASKED_PAIR
            + ATTENTION_BYTES
            # the largest matrix dequantized, and the next
            + 2 * self.weight_bytes * self.hidden_size * self.intermediate_size
        )

    def prefill_chunk_size(self, wanted: int | None, free_bytes: int, length: int) -> int:
        """Return how many tokens of a prompt to read at once.

        Args:
            wanted: What the parameters say; None leaves it to the memory.
            free_bytes: What is left when the weights are there.
            length: Tokens of the longest prompt with its answer.
        """
        if wanted is not None:
            return wanted
        room = PREFILL_SHARE * free_bytes
        fitting = (one for one in PREFILL_TOKENS if self.working_bytes(one, length) <= room)
        return next(fitting, PREFILL_TOKENS[-1])

    def max_num_seqs_that_fit(self, free_bytes: int, prefill_chunk_size: int, length: int) -> int:
        """Return how many sequences fit beside the weights; 0 where not even one does.

        Args:
            free_bytes: What is left when the weights are there.
            prefill_chunk_size: Tokens of a prompt that are read at once.
            length: Tokens of the longest prompt with its answer.
        """
        room = USABLE_SHARE * free_bytes - self.working_bytes(prefill_chunk_size, length)
        return max(0, int(room // self.slot_bytes(length)))


def free_bytes(device: torch.device, limit_gb: float | None) -> int:
    """Return the memory that is left for sequences on a device.

    Args:
        device: Of a CPU's memory a part counts, so that nothing else is driven out.
        limit_gb: What this process may have in all on a GPU; None is no limit.
    """
    if device.type == "cpu":
        import psutil

        return int(CPU_SHARE * psutil.virtual_memory().available)
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    # what the allocator holds and does not use is free as well
    free += torch.cuda.memory_reserved(device) - held
    return free if limit_gb is None else min(free, round(limit_gb * 1e9) - held)


def bytes_of_merging(model: Any, adapter: ModelDirectory | None) -> tuple[int, int]:
    """Return what a 4-bit model grows by in bfloat16, and what merging needs beside that.

    Args:
        model: A transformers model whose matrices bitsandbytes holds in 4 bits.
        adapter: A LoRA adapter; None for none.
    """
    from bitsandbytes.nn.modules import Linear4bit

    layers = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    sizes = [layer.in_features * layer.out_features for layer in layers]
    grown = sum(2 * size - layer.weight.nbytes for size, layer in zip(sizes, layers, strict=True))
    if adapter is None:
        return grown, 0
    factors = sum(math.prod(one.shape) for one in read_headers(adapter.path).values())
    # both in float32: the factors, and a product of them as it is and scaled
    return grown, 4 * factors + 2 * 4 * max(sizes, default=0)
