"""transformers' own cache, of keys and values that have been in 8 bits as the engine keeps them."""

from __future__ import annotations

from typing import Any

import transformers

from ja_instruct.engine.kernels.int8_kv import hadamard_matrix, hadamard_rotate, quantize_int8


class RoundedCache(transformers.DynamicCache):
    """What ``inference.batching.kv_cache_dtype: int8`` reads; for heads of a power of 2."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        """Round the rotated keys and the values, turn the keys back, and keep them."""
        dtype, width = key_states.dtype, key_states.shape[-1]
        turned = quantize_int8(hadamard_rotate(key_states)).dequantize(dtype)
        back = hadamard_matrix(width, dtype, turned.device).T * width**-0.5
        values = quantize_int8(value_states).dequantize(dtype)
        return super().update(turned @ back, values, *args, **kwargs)
