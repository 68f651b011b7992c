"""The kernel for one token a sequence against attention written with PyTorch's operations."""

import pytest
import torch
from kernel_inputs import attention_inputs, query_and_key

from ja_instruct.engine.attention import grouped_attention
from ja_instruct.engine.kernels.decode_attention import (
    LONGEST_PART,
    decode_attention,
    supports_decode,
)
from ja_instruct.engine.kernels.int8_kv import Int8Vectors, hadamard_rotate, quantize_int8


def test_cpu_is_not_supported():
    assert not supports_decode(*query_and_key())


@pytest.mark.gpu
def test_16_bit_steps_are_supported():
    assert supports_decode(*query_and_key(device="cuda"))
    assert not supports_decode(*query_and_key(tokens=2, device="cuda"))
    assert not supports_decode(*query_and_key(dtype=torch.float32, device="cuda"))
    assert not supports_decode(*query_and_key(width=96, device="cuda"))


def step(shape, window, dtype):
    """Return a step's inputs; sequences reach from the first position to the last."""
    positions = torch.linspace(0, shape[3] - 1, shape[0]).long()[:, None]
    return attention_inputs(positions, shape, window, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 50.0, 5.0])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 8, 4, 200, 128),
        (1, 4, 4, 70, 64),
        (2, 6, 2, LONGEST_PART + 513, 128),
        (9, 8, 1, 33, 256),
    ],
    ids=str,
)
def test_kernel_equals_grouped_attention(shape, window, softcap, dtype):
    tensors = step(shape, window, dtype)
    scaling = shape[-1] ** -0.5
    exact, _ = grouped_attention(
        None, *(tensor.float() for tensor in tensors), scaling, softcap=softcap
    )
    output = decode_attention(*tensors, scaling, softcap)
    torch.testing.assert_close(output.transpose(1, 2).float(), exact, rtol=2e-2, atol=1e-2)
    assert torch.equal(output, decode_attention(*tensors, scaling, softcap))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 50.0])
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    "shape", [(3, 8, 4, 200, 128), (2, 6, 2, LONGEST_PART + 513, 64), (9, 8, 1, 33, 256)], ids=str
)
def test_kernel_supports_int8_keys(shape, window, softcap, dtype):
    query, keys, values, mask = step(shape, window, dtype)
    # a view of the first positions of a cache, as a step has it
    whole = [quantize_int8(hadamard_rotate(keys.float() * 0.1)), quantize_int8(values * 0.1)]
    keys, values = (Int8Vectors(numbers[:, :, :-8], scales[:, :, :-8]) for numbers, scales in whole)
    mask, scaling = mask[..., :-8], 10 * shape[-1] ** -0.5
    restored = (vectors.dequantize(torch.float32) for vectors in (keys, values))
    exact, _ = grouped_attention(
        None, hadamard_rotate(query.float()), *restored, mask.float(), scaling, softcap=softcap
    )
    assert supports_decode(query, keys)
    output = decode_attention(query, keys, values, mask, scaling, softcap)
    torch.testing.assert_close(output.transpose(1, 2).float(), exact, rtol=2e-2, atol=1e-3)
    assert torch.equal(output, decode_attention(query, keys, values, mask, scaling, softcap))


@pytest.mark.gpu
def test_masked_keys_are_not_read():
    query, keys, values, mask = step((2, 4, 2, 600, 64), None, torch.bfloat16)
    expected = decode_attention(query, keys, values, mask, 0.1, None)
    # the first sequence sees one position; numbers far behind it would spoil any sum
    keys[0, :, 300:], values[0, :, 300:] = torch.nan, torch.nan
    assert torch.equal(decode_attention(query, keys, values, mask, 0.1, None), expected)


@pytest.mark.gpu
def test_cuda_graph_captures_it(replayed):
    tensors = step((4, 8, 4, 300, 128), None, torch.bfloat16)
    expected = decode_attention(*tensors, 0.1, 50.0)
    assert torch.equal(replayed(lambda: decode_attention(*tensors, 0.1, 50.0)), expected)
