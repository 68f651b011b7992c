"""A KV cache with a row per sequence, each filled to its own length, at fixed addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ja_instruct.engine.kernels.int8_kv import (
    Int8Vectors,
    hadamard_rotate,
    quantize_int8,
    store_int8,
    supports_store,
)
from ja_instruct.memory.estimates import vector_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Keys or values of a layer: (sequences, heads, span, width)
Vectors = torch.Tensor | Int8Vectors


class KVCache:
    """Keys and values of all layers for a fixed number of sequences.

    transformers' static cache keeps all sequences at one length. Here ``place`` gives the row and
    the position of each token, so that a finished sequence makes room for the next one while the
    others continue. Positions beyond a sequence's own hold an earlier sequence, and the mask hides
    them. All memory is allocated at the start, as CUDA graphs need it.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        max_num_seqs: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        is_int8: bool = False,
    ) -> None:
        """Allocate the cache for ``max_num_seqs`` sequences of ``length`` tokens.

        With ``is_int8`` keys and values are quantized; what is read back does not depend on the
        prefill chunk size.
        """
        text = config.get_text_config()
        shape = (max_num_seqs, text.num_key_value_heads, length, _head_width(text))
        layers = range(text.num_hidden_layers)

        def allocate() -> Any:
            if is_int8:
                return Int8Vectors.zeros(shape, device)
            return torch.zeros(shape, dtype=dtype, device=device)

        self._is_int8 = is_int8
        self._keys, self._values = [allocate() for _ in layers], [allocate() for _ in layers]
        self._row: int | None = None
        self._rows = torch.arange(max_num_seqs, device=device)[:, None]
        self._positions = torch.zeros((max_num_seqs, 1), dtype=torch.long, device=device)
        self._span = length

    def place(self, positions: torch.Tensor, span: int, row: int | None = None) -> None:
        """Set where the next tokens are stored, and how many positions ``update`` returns.

        ``positions``, (sequences, tokens), are those of one row, or of all rows in order.
        """
        self._positions, self._span, self._row = positions, span, row

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Vectors, Vectors]:
        """Store a layer's keys and values, (sequences, heads, tokens, width); return the cache's.

        An int8 cache returns rotated keys, so queries must be rotated too.
        """
        kept = self._keys[layer_idx], self._values[layer_idx]
        if not self._is_int8:
            return self._store(kept[0], keys), self._store(kept[1], values)
        if supports_store(keys):
            rows = self._sequences
            store_int8((keys, values), (kept[0].part(rows), kept[1].part(rows)), self._positions)
        else:
            for vectors, new in zip(kept, (hadamard_rotate(keys.float()), values), strict=True):
                for one, rounded in zip(vectors, quantize_int8(new), strict=True):
                    self._store(one, rounded)
        return kept[0].part(*self._shown), kept[1].part(*self._shown)

    @property
    def _sequences(self) -> slice:
        return slice(None) if self._row is None else slice(self._row, self._row + 1)

    @property
    def _shown(self) -> tuple[slice, slice, slice]:
        return self._sequences, slice(None), slice(self._span)

    def _store(self, kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Store tokens, (sequences, heads, tokens, ...), and return the span."""
        if self._row is None:
            # (sequences, tokens, heads, ...), as indexing by two tensors orders it
            kept[self._rows, :, self._positions] = new.transpose(1, 2).to(kept.dtype)
        else:
            kept[self._row, :, self._positions[0]] = new[0].to(kept.dtype)
        return kept[self._shown]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: transformers asks, but positions and masks come with the tokens."""
        return 0


def bytes_per_token(config: PretrainedConfig, dtype: torch.dtype, *, is_int8: bool = False) -> int:
    """Return the bytes of a cache per token of a sequence."""
    text = config.get_text_config()
    vectors = 2 * text.num_hidden_layers * text.num_key_value_heads
    return int(vectors * vector_bytes(_head_width(text), dtype.itemsize, is_int8=is_int8))


def _head_width(text: PretrainedConfig) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def causal_mask(
    config: PretrainedConfig, positions: torch.Tensor, span: int, dtype: torch.dtype
) -> dict[str, torch.Tensor] | torch.Tensor:
    """Return the causal mask, added to the attention scores, as transformers' models take it.

    The tokens are at ``positions``, (sequences, tokens), of a cache with ``span`` positions.

    Returns:
        (sequences, 1, tokens, span); a dictionary by layer type for models with several types.
    """
    text = config.get_text_config()
    distance = positions[:, None, :, None] - torch.arange(span, device=positions.device)
    causal = distance >= 0

    def additive(allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    types = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None)
    if "sliding_attention" not in types or not window:
        return {"full_attention": additive(causal)} if len(types) > 1 else additive(causal)
    sliding = additive(causal & (distance < window))
    if len(types) == 1:
        return sliding
    return {"full_attention": additive(causal), "sliding_attention": sliding}
