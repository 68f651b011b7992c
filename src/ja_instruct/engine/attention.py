"""Grouped-query attention that reads the KV cache in place.

transformers' own implementations repeat keys and values for each query head that shares them. In a
decoding step with many sequences these copies are larger than everything else that the step reads.
Here the queries of a key head are rows of one matrix, and the cache is multiplied as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ja_instruct.engine.kernels.decode_attention import decode_attention, supports_decode
from ja_instruct.engine.kernels.int8_kv import Int8Vectors, hadamard_rotate
from ja_instruct.engine.kernels.prefill_attention import prefill_attention, supports_prefill

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "grouped"

# Attention scores computed at once: 64 MB in float32, twice that during the softmax. A prefill
# chunk of 1,024 tokens has 134 million scores against 4,096 keys in gemma-2-27b.
SCORES_AT_ONCE = 2**24


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Make a model, possibly wrapped by PEFT, compute its attention with ``grouped_attention``.

    For inference only: it works in place, without gradients. Masks of shape (sequences, 1, tokens,
    span), or a dictionary of them by layer type, reach it unchanged; from other masks transformers
    makes those of its eager attention.

    Raises:
        ValueError: The model's attention cannot be replaced.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.set_attn_implementation(NAME)
    config = model.config.get_text_config()
    if config._attn_implementation != NAME:
        raise ValueError(
            f"the attention of {type(model).__name__} cannot be replaced: it stays "
            f"{config._attn_implementation!r}"
        )


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Int8Vectors,
    value: torch.Tensor | Int8Vectors,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output, with the signature that transformers calls.

    Grouped-query attention (arXiv:2305.13245) with Gemma 2's soft cap (arXiv:2408.00118). Products
    are rounded to the queries' dtype and the softmax is computed in float32, as in transformers'
    eager attention. On a GPU decoding is one kernel, which rounds less and reads each sequence's
    keys only as far as they reach. So is prefill with a soft cap, which PyTorch's own attention
    does not support. No operation depends on data, so a CUDA graph can capture it.

    Args:
        module: The layer.
        query: (sequences, heads, tokens, width).
        key: (sequences, key heads, span, width), possibly a view of a longer cache; the heads that
            share a key head are adjacent. An int8 cache has rotated keys.
        value: As the keys.
        attention_mask: Added to the scores, (sequences or 1, 1, tokens, span); or None.
        scaling: Of the scores; None for the inverse root of the width.
        dropout: Must be 0.
        softcap: Gemma 2's bound on the scores; or None.
        kwargs: Arguments of other implementations, such as windows, which are in the mask here.

    Returns:
        (sequences, tokens, heads, width), and None in place of the attention weights.

    Raises:
        ValueError: ``dropout`` is not 0.
    """
    if dropout:
        raise ValueError("grouped attention is for inference and has no dropout; call model.eval()")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None and supports_decode(query, key):
        attended = decode_attention(query, key, value, attention_mask, scaling, softcap)
        return attended.transpose(1, 2), None
    if isinstance(key, Int8Vectors):
        query, key = hadamard_rotate(query), key.dequantize(query.dtype)
    if isinstance(value, Int8Vectors):
        value = value.dequantize(query.dtype)
    if softcap is not None and attention_mask is not None and supports_prefill(query, key):
        attended = prefill_attention(query, key, value, attention_mask, scaling, softcap)
        return attended.transpose(1, 2), None
    if softcap is None and query.shape[2] > 1:
        # PyTorch's own never holds all scores, and only a prompt's keys are repeated
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        given = {**kwargs, "is_causal": False}
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
        return output, None
    scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
    if scores <= SCORES_AT_ONCE:
        attended = _attend(query, key, value, attention_mask, scaling, softcap)
        return attended.transpose(1, 2), None
    output = torch.empty_like(query)
    for rows, part in _parts(query, key):
        mask = attention_mask
        if mask is not None:
            mask = mask[rows if len(mask) > 1 else slice(None), :, part]
        output[rows, :, part] = _attend(
            query[rows, :, part], key[rows], value[rows], mask, scaling, softcap
        )
    return output.transpose(1, 2), None


def _parts(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of sequences and of tokens whose scores are computed at once."""
    sequences, heads, tokens, _ = query.shape
    of_token = heads * key.shape[2]
    sequences_at_once = max(1, SCORES_AT_ONCE // (of_token * tokens))
    tokens_at_once = max(1, SCORES_AT_ONCE // of_token)
    for row in range(0, sequences, sequences_at_once):
        for token in range(0, tokens, tokens_at_once):
            yield slice(row, row + sequences_at_once), slice(token, token + tokens_at_once)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:
    """Return (sequences, heads, tokens, width)."""
    sequences, heads, tokens, width = query.shape
    _, key_heads, span, _ = key.shape
    pairs = sequences * key_heads
    rows = query.reshape(pairs, -1, width)
    # flattening sequences and key heads of a cache does not copy
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    scores = query.new_empty(pairs, rows.shape[1], span)
    if softcap is None:
        scores.baddbmm_(rows, keys.transpose(1, 2), beta=0, alpha=scaling)
    else:
        scores.baddbmm_(rows, keys.transpose(1, 2), beta=0, alpha=scaling / softcap)
        scores.tanh_().mul_(softcap)
    if mask is not None:
        scores.view(sequences, heads, tokens, span).add_(mask)
    # PyTorch computes it in float32 for 16-bit dtypes too
    weights = torch.softmax(scores, dim=-1)
    return torch.bmm(weights, values).view(sequences, heads, tokens, width)
