"""The kernel for a prompt's piece against attention written with PyTorch's operations."""

import pytest
import torch
from kernel_inputs import attention_inputs, query_and_key

from ja_instruct.engine import attention as caller
from ja_instruct.engine.attention import grouped_attention
from ja_instruct.engine.kernels.prefill_attention import (
    MOST_HEADS,
    Blocks,
    choose_blocks,
    prefill_attention,
    supports_prefill,
)

# sequences, heads, key heads, tokens, span, width
SHAPES = [
    (1, 32, 16, 300, 812, 128),
    (1, 4, 4, 200, 200, 64),
    (2, 8, 2, 77, 333, 64),
    (2, 8, 1, 130, 515, 256),
    (1, 6, 2, 45, 1100, 32),
    (1, 4, 2, 2, 700, 128),
]


def test_cpu_is_not_supported():
    assert not supports_prefill(*query_and_key(9))


@pytest.mark.gpu
def test_16_bit_chunks_are_supported():
    assert supports_prefill(*query_and_key(9, device="cuda"))
    assert supports_prefill(*query_and_key(tokens=2, dtype=torch.float16, device="cuda"))
    assert not supports_prefill(*query_and_key(tokens=1, device="cuda"))
    assert not supports_prefill(*query_and_key(9, dtype=torch.float32, device="cuda"))
    assert not supports_prefill(*query_and_key(9, width=96, device="cuda"))
    assert not supports_prefill(*query_and_key(9, heads=4 * MOST_HEADS, device="cuda"))


@pytest.mark.parametrize("major", [8, 9, 10, 12])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_block_sizes_suit_the_instructions(width, major):
    blocks = choose_blocks(width, major)
    assert blocks.rows >= MOST_HEADS
    # a matrix instruction has 16 rows, of a warp, or of four together on Hopper 64
    assert blocks.rows == 16 * blocks.warps
    assert blocks.keys >= 16


@pytest.mark.parametrize(
    ("softcap", "masked", "called"), [(5.0, True, 1), (None, True, 0), (5.0, False, 0)]
)
def test_grouped_attention_calls_it_with_a_soft_cap(softcap, masked, called, monkeypatch):
    calls = []

    def kernel(query, key, value, mask, scaling, softcap):
        calls.append((mask.shape, scaling, softcap))
        return query

    monkeypatch.setattr(caller, "supports_prefill", lambda query, key: True)
    monkeypatch.setattr(caller, "prefill_attention", kernel)
    layer = torch.nn.Module()
    layer.num_key_value_groups = 2
    query, key = query_and_key(9, dtype=torch.float32)
    mask = torch.zeros(1, 1, 9, 9) if masked else None
    output, _ = grouped_attention(layer, query, key, key, mask, softcap=softcap)
    assert output.shape == (2, 9, 4, 64)
    assert calls == [((1, 1, 9, 9), 0.125, 5.0)] * called


def piece(sequences, heads, key_heads, tokens, span, width, window, dtype=torch.bfloat16):
    """Return the inputs of a chunk, whose tokens are the last of the span."""
    positions = torch.arange(span - tokens, span)[None]
    return attention_inputs(positions, (sequences, heads, key_heads, span, width), window, dtype)


def exact(query, key, value, mask, scaling, softcap):
    tensors = [tensor.float() for tensor in (query, key, value, mask)]
    assert not supports_prefill(*tensors[:2])
    layer = torch.nn.Module()
    layer.num_key_value_groups = query.shape[1] // key.shape[1]
    layer.eval()
    return grouped_attention(layer, *tensors, scaling, softcap=softcap)[0].transpose(1, 2)


def assert_exact(output, expected):
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 50.0, 5.0])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_grouped_attention(shape, window, softcap, dtype):
    tensors = piece(*shape, window, dtype)
    scaling = shape[-1] ** -0.5
    output = prefill_attention(*tensors, scaling, softcap)
    assert output.transpose(1, 2).is_contiguous()
    assert_exact(output, exact(*tensors, scaling, softcap))
    assert torch.equal(output, prefill_attention(*tensors, scaling, softcap))


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [(64, 32, 4, 2), (128, 32, 8, 3), (128, 64, 8, 2)], ids=str)
def test_other_block_sizes_have_the_same_result(blocks):
    tensors = piece(1, 8, 4, 300, 812, 128, 300)
    expected = exact(*tensors, 0.1, 50.0)
    assert_exact(prefill_attention(*tensors, 0.1, 50.0, Blocks(*blocks)), expected)


@pytest.mark.gpu
def test_kernel_has_a_smaller_error_than_pytorch(monkeypatch):
    tensors = piece(1, 8, 4, 150, 400, 128, 200)
    output, _ = grouped_attention(None, *tensors, 0.1, softcap=50.0)
    assert output.is_contiguous()
    assert torch.equal(output.transpose(1, 2), prefill_attention(*tensors, 0.1, 50.0))
    monkeypatch.setattr(caller, "supports_prefill", lambda query, key: False)
    without, _ = grouped_attention(None, *tensors, 0.1, softcap=50.0)
    expected = exact(*tensors, 0.1, 50.0).transpose(1, 2)
    assert (output - expected).abs().mean() < (without - expected).abs().mean()


@pytest.mark.gpu
def test_any_mask_is_supported():
    """Different ones by sequence, with gaps, numbers between, and infinities."""
    query, keys, values, mask = piece(2, 4, 2, 150, 650, 64, None)
    torch.manual_seed(1)
    hidden = torch.rand(2, 1, 150, 13).repeat_interleave(50, -1) < 0.5
    mask = torch.zeros(2, 1, 150, 650).masked_fill(hidden, torch.finfo(torch.bfloat16).min)
    # of the second some blocks are hidden from all, and the others have no mask
    mask[1] = torch.finfo(torch.bfloat16).min
    mask[1, ..., 128:256], mask[1, ..., 384:512] = 0, 0
    mask[..., 3] = torch.randn(2, 1, 150)
    mask[0, ..., 400:420] = -torch.inf
    mask = mask.to("cuda", torch.bfloat16)
    output = prefill_attention(query, keys, values, mask, 0.1, 5.0)
    assert_exact(output, exact(query, keys, values, mask, 0.1, 5.0))


@pytest.mark.gpu
def test_tokens_without_visible_keys_get_finite_numbers():
    query, keys, values, mask = piece(1, 4, 2, 300, 300, 64, None)
    expected = prefill_attention(query, keys, values, mask, 0.1, 5.0)
    mask[:, :, :170] = torch.finfo(torch.bfloat16).min
    output = prefill_attention(query, keys, values, mask, 0.1, 5.0)
    assert output.isfinite().all()
    torch.testing.assert_close(output[:, :, 170:], expected[:, :, 170:], rtol=2e-2, atol=1e-2)


@pytest.mark.gpu
def test_masked_keys_are_not_read():
    query, keys, values, mask = piece(1, 4, 2, 40, 640, 64, None)
    mask[..., :128], mask[..., 512:] = (torch.finfo(torch.bfloat16).min,) * 2
    expected = prefill_attention(query, keys, values, mask, 0.1, 5.0)
    for tensor in (keys, values):
        tensor[:, :, :128], tensor[:, :, 512:] = torch.nan, torch.nan
    assert torch.equal(prefill_attention(query, keys, values, mask, 0.1, 5.0), expected)


@pytest.mark.gpu
def test_cuda_graph_captures_it(replayed):
    tensors = piece(1, 8, 4, 200, 456, 128, None)
    expected = prefill_attention(*tensors, 0.1, 50.0)
    assert torch.equal(replayed(lambda: prefill_attention(*tensors, 0.1, 50.0)), expected)
