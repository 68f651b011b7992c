"""Attention, norms, gates and rotations of Gemma 2 27B: the kernels, and what they replace.

Each function returns, by name, a call of ours and one of theirs on the same random data.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.generation.kernel_matrices import Call
from benchmarks.harness.random_models import SHAPES
from ja_instruct.engine import attention
from ja_instruct.engine.kernels.decode_attention import decode_attention
from ja_instruct.engine.kernels.int8_kv import Int8Vectors, hadamard_rotate, quantize_int8
from ja_instruct.engine.kernels.norm_rope_gate import gated, rms_norm, rotate
from ja_instruct.engine.kernels.prefill_attention import prefill_attention

_SHAPE = SHAPES["gemma-2-27b"]
HEADS, KEY_HEADS = _SHAPE["num_attention_heads"], _SHAPE["num_key_value_heads"]
WIDTH = _SHAPE["head_dim"]
SOFTCAP, SCALING = _SHAPE["attn_logit_softcapping"], _SHAPE["query_pre_attn_scalar"] ** -0.5
#: Tokens of a prefill chunk, and number of keys including them.
CHUNKS = ((1024, 1024), (1024, 2048), (1024, 3072), (2048, 2048))
#: Sequences of a step, allocated positions of the KV cache, and the range of those in use.
SEQUENCES, CACHED, SHORTEST, LONGEST = 40, 4096, 3216, 3584
#: Sequences and tokens of each.
STEP, CHUNK = (SEQUENCES, 1), (1, 1024)

Tensors = tuple[torch.Tensor | Int8Vectors, ...]
Calls = dict[str, tuple[Call, Call]]


def attend_in_operations(tensors: Tensors) -> torch.Tensor:
    """Return attention by PyTorch's operations, (sequences, tokens, heads, width)."""
    refuse = mock.Mock(return_value=False)
    with mock.patch.multiple(attention, supports_decode=refuse, supports_prefill=refuse):
        module = torch.nn.Identity()
        return attention.grouped_attention(module, *tensors, SCALING, softcap=SOFTCAP)[0]


def draw_attention(positions: torch.Tensor, span: int, cached: int) -> Tensors:
    """Return queries, keys, values and mask as in the engine: keys are a view of a cache.

    Args:
        positions: Of each sequence's tokens, (sequences, tokens); they see all before themselves.
        span: Number of the cache's positions in the view.
        cached: Number of the cache's positions.
    """
    sequences, tokens = positions.shape
    given: dict[str, Any] = {"device": positions.device, "dtype": torch.bfloat16}
    # large enough for the soft cap to matter
    query = torch.randn(sequences, tokens, HEADS, WIDTH, **given).transpose(1, 2) * 2
    cache = torch.randn(2, sequences, KEY_HEADS, cached, WIDTH, **given)[:, :, :, :span]
    hidden = torch.arange(span, device=positions.device) > positions[:, None, :, None]
    mask = torch.zeros(hidden.shape, **given)
    mask = mask.masked_fill(hidden, torch.finfo(torch.bfloat16).min)
    return query, cache[0], cache[1], mask


def _attention(kernel: Any, tensors: Tensors) -> tuple[Call, Call]:
    return (
        lambda: kernel(*tensors, SCALING, SOFTCAP).transpose(1, 2),
        partial(attend_in_operations, tensors),
    )


def prefill(device: torch.device) -> Calls:
    """Attention of prefill chunks."""
    calls = {}
    for tokens, span in CHUNKS:
        positions = torch.arange(span - tokens, span, device=device)[None]
        tensors = draw_attention(positions, span, CACHED)
        calls[f"{tokens} of {span}"] = _attention(prefill_attention, tensors)
    return calls


def decoding(device: torch.device) -> Calls:
    """Attention of a step; the view has as many keys as the longest sequence.

    PyTorch's operations convert an int8 KV cache to bfloat16 first.
    """
    lengths = torch.linspace(SHORTEST, LONGEST, SEQUENCES, device=device).long()
    query, keys, values, mask = draw_attention(lengths[:, None] - 1, LONGEST, CACHED)
    int8 = quantize_int8(hadamard_rotate(keys)), quantize_int8(values)
    return {
        f"{SEQUENCES} sequences": _attention(decode_attention, (query, keys, values, mask)),
        f"{SEQUENCES} sequences, int8": _attention(decode_attention, (query, *int8, mask)),
    }


def norm(shape: tuple[int, int], device: torch.device) -> tuple[Call, Call]:
    """Gemma's norm."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    module = Gemma2RMSNorm(_SHAPE["hidden_size"]).to(device, torch.bfloat16)
    module.weight.data.normal_(std=0.2)
    x = torch.randn(*shape, _SHAPE["hidden_size"], device=device).bfloat16()
    return lambda: rms_norm(x, module.weight, module.eps, "one_plus"), lambda: module(x)


def gate(shape: tuple[int, int], device: torch.device) -> tuple[Call, Call]:
    """The gate of the feed-forward layer."""
    from transformers.activations import ACT2FN

    activation = ACT2FN["gelu_pytorch_tanh"]
    gates, up = torch.randn(2, *shape, _SHAPE["intermediate_size"], device=device).bfloat16()
    return lambda: gated(gates, up, "gelu_tanh"), lambda: activation(gates) * up


def rotation(shape: tuple[int, int], device: torch.device) -> tuple[Call, Call]:
    """The rotation of queries and keys, in the memory layout of their projections."""
    from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

    query, key = (
        torch.randn(*shape, heads, WIDTH, device=device).bfloat16().transpose(1, 2)
        for heads in (HEADS, KEY_HEADS)
    )
    angles = torch.rand(*shape, WIDTH // 2, device=device).repeat(1, 1, 2) * 6.28
    given = (query, key, angles.cos().bfloat16(), angles.sin().bfloat16())
    return lambda: rotate(*given), lambda: apply_rotary_pos_emb(*given)


def layers(device: torch.device) -> Calls:
    """The fused layers, for a step and for a prefill chunk."""
    return {
        f"{make.__name__}, {name} of {shape[0] * shape[1]}": make(shape, device)
        for name, shape in (("step", STEP), ("chunk", CHUNK))
        for make in (norm, gate, rotation)
    }
