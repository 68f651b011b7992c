"""A key-value cache with a slot a sequence, each filled to its own length, at fixed addresses."""

from __future__ import annotations

from typing import Any

import torch

from ja_instruct.engine.kernels.int8_kv import (
    Int8Vectors,
    hadamard_rotate,
    quantize_int8,
    store_int8,
    supports_store,
)
from ja_instruct.memory.estimates import vector_bytes

# Keys or values of a layer: (sequences, heads, span, width)
Vectors = torch.Tensor | Int8Vectors


class KVCache:
    """Keys and values of all layers for a fixed number of sequences.

    transformers' static cache keeps all sequences at one length. Here each token goes to the slot
    and the position that ``place`` says, so that a finished sequence makes room for the next while
    the others go on. What lies beyond a sequence's position is of an earlier one, and is left out
    by the mask. Nothing is ever allocated again, as a CUDA graph needs it.

    Attributes:
        length: Tokens a slot holds.
        max_num_seqs: Sequences at a time.
    """

    def __init__(
        self,
        config: Any,
        *,
        max_num_seqs: int,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
        is_int8: bool = False,
    ) -> None:
        """Allocate the cache.

        Args:
            config: The language model's configuration.
            max_num_seqs: Sequences at a time.
            length: Tokens of a sequence, prompt and answer.
            dtype: Of keys and values.
            device: Where the model is.
            is_int8: Whether they are kept in 8 bits; what is read of them is the same whether a
                prompt comes in one piece or in many.
        """
        text = config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = (max_num_seqs, text.num_key_value_heads, length, head)
        layers = range(text.num_hidden_layers)

        def make() -> Any:
            if is_int8:
                return Int8Vectors.zeros(shape, device)
            return torch.zeros(shape, dtype=dtype, device=device)

        self._is_int8 = is_int8
        self._keys, self._values = [make() for _ in layers], [make() for _ in layers]
        self.max_num_seqs = max_num_seqs
        self.length = length
        self._slot: int | None = None
        self._rows = torch.arange(max_num_seqs, device=device)[:, None]
        self._positions = torch.zeros((max_num_seqs, 1), dtype=torch.long, device=device)
        self._span = length

    def place(self, positions: torch.Tensor, span: int, slot: int | None = None) -> None:
        """Say where the next tokens go.

        Args:
            positions: (sequences, tokens), of all max_num_seqs in order or of one.
            span: How many positions of the max_num_seqs are looked at.
            slot: The one; None for all.
        """
        self._positions, self._span, self._slot = positions, span, slot

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Vectors, Vectors]:
        """Store a layer's keys and values, (sequences, heads, tokens, width); return the cache's.

        A cache in 8 bits returns its keys rotated: queries have to be, too.
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
        return kept[0].part(*self._what_is_seen), kept[1].part(*self._what_is_seen)

    @property
    def _sequences(self) -> slice:
        return slice(None) if self._slot is None else slice(self._slot, self._slot + 1)

    @property
    def _what_is_seen(self) -> tuple[slice, slice, slice]:
        return self._sequences, slice(None), slice(self._span)

    def _store(self, kept: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Put tokens, (sequences, heads, tokens, ...), in their places; return what is seen."""
        if self._slot is None:
            # (sequences, tokens, heads, ...), as indexing by two tensors orders it
            kept[self._rows, :, self._positions] = new.transpose(1, 2).to(kept.dtype)
        else:
            kept[self._slot, :, self._positions[0]] = new[0].to(kept.dtype)
        return kept[self._what_is_seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are given with the tokens."""
        return 0


def bytes_per_token(config: Any, dtype: torch.dtype, *, is_int8: bool = False) -> int:
    """Return what a token of a sequence takes of a cache."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    vectors = 2 * text.num_hidden_layers * text.num_key_value_heads
    return int(vectors * vector_bytes(head, dtype.itemsize, is_int8=is_int8))


def causal_mask(
    config: Any, positions: torch.Tensor, span: int, dtype: torch.dtype
) -> dict[str, torch.Tensor] | torch.Tensor:
    """Return what each token may see, as transformers' models take it.

    Args:
        config: The language model's configuration.
        positions: Of the tokens, (sequences, tokens).
        span: Positions that the cache shows.
        dtype: Of the attention's scores, to which the mask is added.

    Returns:
        (sequences, 1, tokens, span); one for each kind of layer where there are several.
    """
    text = config.get_text_config()
    keys = torch.arange(span, device=positions.device)
    behind = positions[:, None, :, None] - keys
    causal = behind >= 0

    def added(allowed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None)
    if "sliding_attention" not in kinds or not window:
        return {"full_attention": added(causal)} if len(kinds) > 1 else added(causal)
    masks = {
        "full_attention": added(causal),
        "sliding_attention": added(causal & (behind < window)),
    }
    return masks if len(kinds) > 1 else masks["sliding_attention"]
