"""Vectors in 8 bits, and the kernel that puts those of a step into a cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.engine.kernels.int8_kv import (
    LEAST,
    Int8Vectors,
    hadamard_matrix,
    hadamard_rotate,
    quantize_int8,
    store_int8,
    supports_store,
)
from ja_instruct.engine.kv_cache import KVCache

HALF = 0.5 * (1 + 1e-5)
# of smaller vectors nothing need be left
TINY = 127 * LEAST


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40))
def test_rounding_error_is_at_most_half_a_step(numbers):
    vector = torch.tensor(numbers)
    rounded = quantize_int8(vector)
    step = vector.abs().max() / 127
    assert rounded.numbers.dtype == torch.uint8
    assert (rounded.dequantize(torch.float32) - vector).abs().max() <= HALF * step + TINY


def test_every_vector_has_its_own_scale():
    vectors = torch.tensor([[127.0, -3.4, 0.0], [-1.27, 0.05, 0.0], [0.0, 0.0, 0.0]])
    rounded = quantize_int8(vectors)
    assert rounded.numbers.tolist() == [[255, 125, 128], [1, 133, 128], [128, 128, 128]]
    torch.testing.assert_close(rounded.scales, torch.tensor([1.0, 0.01, 0.0]))
    restored = rounded.dequantize(torch.bfloat16)
    assert restored.dtype == torch.bfloat16
    assert restored[2].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("width", [1, 16, 96, 128])
def test_a_rotation_keeps_products(width):
    torch.manual_seed(0)
    one, other = torch.randn(2, 5, width, dtype=torch.float64)
    turned = hadamard_rotate(one) @ hadamard_rotate(other).T
    torch.testing.assert_close(turned, one @ other.T)
    signs = hadamard_matrix(width, torch.float32, torch.device("cpu"))
    block = {96: 32}.get(width, width)
    assert torch.equal(signs.abs().sum(dim=1), torch.full((width,), float(block)))
    assert hadamard_rotate(one.bfloat16()).dtype == torch.bfloat16


def test_outliers_are_spread():
    torch.manual_seed(0)
    vectors = torch.randn(100, 128)
    # the same in all, as with the keys of many models, and some that are in step with each other
    vectors[:, 7] += 40
    vectors[:, 64:] += 3

    def error(of):
        return float((quantize_int8(of).dequantize(torch.float32) - of).norm() / of.norm())

    assert error(hadamard_rotate(vectors)) < 0.4 * error(vectors)


def test_vectors_of_zeros():
    zeros = Int8Vectors.zeros((2, 3, 4), torch.device("cpu"))
    assert torch.equal(zeros.dequantize(torch.float32), torch.zeros(2, 3, 4))
    assert zeros.scales.shape == (2, 3)


def test_cpu_is_not_supported():
    assert not supports_store(torch.zeros(2, 4, 1, 128, dtype=torch.bfloat16))


@pytest.fixture
def cache(tiny_gemma2):
    given = {"max_num_seqs": 3, "length": 20, "dtype": torch.float32, "device": torch.device("cpu")}
    return KVCache(tiny_gemma2.load_model().config, **given, is_int8=True)


def test_chunked_prefill_stores_the_same(cache):
    heads, width = cache._keys[0].numbers.shape[1::2]
    keys, values = torch.randn(2, 1, heads, 12, width)
    seen = []
    for slot, pieces in ((0, [12]), (2, [5, 4, 3])):
        start = 0
        for tokens in pieces:
            end = start + tokens
            cache.place(torch.arange(start, end)[None], end, slot)
            shown = cache.update(keys[:, :, start:end], values[:, :, start:end], 1)
            start = end
        seen.append(torch.stack([vectors.dequantize(torch.float32) for vectors in shown]))
    assert torch.equal(*seen)
    torch.testing.assert_close(
        seen[0], torch.stack([hadamard_rotate(keys), values]), rtol=0, atol=0.02
    )
    assert not cache._keys[0].scales.any()
    assert not cache._keys[1].scales[1].any()


def test_step_stores_each_token_at_its_position(cache):
    heads, width = cache._keys[0].numbers.shape[1::2]
    keys, values = torch.randn(2, 3, heads, 1, width)
    cache.place(torch.tensor([[4], [0], [9]]), 10)
    shown = cache.update(keys, values, 0)
    assert all(isinstance(vectors, Int8Vectors) for vectors in shown)
    for vectors, new in zip(shown, (hadamard_rotate(keys), values), strict=True):
        restored = vectors.dequantize(torch.float32)
        assert restored.shape == (3, heads, 10, width)
        for slot, place in enumerate((4, 0, 9)):
            torch.testing.assert_close(restored[slot, :, place], new[slot, :, 0], rtol=0, atol=0.02)
            assert torch.count_nonzero(restored[slot].abs().sum(dim=(0, 2))) == 1


@pytest.mark.gpu
def test_16_bit_vectors_are_supported():
    vectors = torch.zeros(2, 4, 1, 128, device="cuda")
    assert supports_store(vectors.bfloat16())
    assert not supports_store(vectors)
    assert not supports_store(vectors[..., :96].bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [32, 128, 256])
@pytest.mark.parametrize("tokens", [1, 4])
def test_kernel_stores_quantized_vectors(width, dtype, tokens):
    torch.manual_seed(0)
    # as they lie behind their matrices; the last head of the first sequence is nothing
    new = torch.randn(2, 5, tokens, 3, width, device="cuda", dtype=dtype).transpose(2, 3)
    new[:, 0, 2] = 0
    assert supports_store(new[0])
    kept = [Int8Vectors.zeros((5, 3, 40, width), new.device) for _ in range(2)]
    first = torch.tensor([[0], [36], [7], [8], [9]], device="cuda")
    positions = first + torch.arange(tokens, device="cuda")
    store_int8((new[0], new[1]), (kept[0], kept[1]), positions)
    rows = torch.arange(5, device="cuda")[:, None]
    for vectors, tensor in zip(kept, (hadamard_rotate(new[0].float()), new[1]), strict=True):
        rounded = quantize_int8(tensor.transpose(1, 2))
        numbers = vectors.numbers[rows, :, positions].int()
        # of the rotation sums have another order
        assert (numbers - rounded.numbers.int()).abs().max() <= 1
        assert (numbers == rounded.numbers).float().mean() > 0.99
        torch.testing.assert_close(vectors.scales[rows, :, positions], rounded.scales)
        assert int((vectors.scales != 0).sum()) == 14 * tokens


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [32, 128])
def test_kernel_dequantizes_vectors(width, dtype):
    vectors = quantize_int8(torch.randn(3, 2, 200, width))
    part = Int8Vectors(*(one.cuda() for one in vectors)).part(slice(1, 3), slice(None), slice(131))
    expected = vectors.part(slice(1, 3), slice(None), slice(131)).dequantize(dtype)
    assert torch.equal(part.dequantize(dtype).cpu(), expected)
