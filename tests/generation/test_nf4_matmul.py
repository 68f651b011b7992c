"""The 4-bit kernel against weights written out; what it reads and refuses, without a GPU."""

import bitsandbytes.functional as quantized
import pytest
import torch

from ja_instruct.generation import nf4_matmul as subject
from ja_instruct.generation.nf4_matmul import (
    Blocks,
    choose_blocks,
    is_available,
    nf4_matmul,
    nf4_weight,
)

# in the order of a word's weights
SHIFTS = torch.tensor([4, 0, 12, 8, 20, 16, 28, 24])


def quantize(outputs, inputs, *, nested=True, device="cpu", **changes):
    torch.manual_seed(0)
    weight = (torch.randn(outputs, inputs) * 0.02).to(device, torch.bfloat16)
    settings = {"quant_type": "nf4", "blocksize": 64, "compress_statistics": nested}
    return quantized.quantize_4bit(weight, **{**settings, **changes})


def reference_nf4_matmul(x, packed, state, bias=None):
    """Multiply with the weights written out in bfloat16, in float32."""
    output = x.float() @ quantized.dequantize_4bit(packed, state).float().T
    return output if bias is None else output + bias.float()


def write_out(weight):
    """Return the weights as the kernel computes them, step by step."""
    places = (weight.words[:, None] >> SHIFTS) & 15
    values = weight.levels[places.reshape(-1, 64)]
    scales = weight.scales
    if weight.scale_offset is not None:
        blocks = torch.arange(len(scales)) // 256
        scales = weight.scale_levels[scales.long()] * weight.scale_scales[blocks]
        scales = scales + weight.scale_offset
    rounded = (values * scales[:, None]).to(torch.bfloat16)
    return rounded.view(weight.outputs, weight.inputs)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(128, 256), (200, 192), (3, 64)], ids=str)
def test_words_hold_bitsandbytes_weights_in_their_order(shape, nested):
    packed, state = quantize(*shape, nested=nested)
    weight = nf4_weight(packed, state)
    assert (weight.outputs, weight.inputs) == shape
    assert torch.equal(write_out(weight), quantized.dequantize_4bit(packed, state))


def test_nothing_is_copied():
    packed, state = quantize(128, 128)
    weight = nf4_weight(packed, state)
    assert weight.words.data_ptr() == packed.data_ptr()
    assert weight.scales.data_ptr() == state.absmax.data_ptr()


@pytest.mark.parametrize(
    ("shape", "changes", "reason"),
    [
        ((64, 128), {"quant_type": "fp4"}, "type 'fp4' instead of 'nf4'"),
        ((64, 128), {"blocksize": 128}, "block size 128 instead of 64"),
        ((64, 96), {}, "rows of 96 weights, which are no multiple of 64"),
        ((64, 128), {"quant_storage": torch.float32}, "storage torch.float32 instead of"),
    ],
    ids=["type", "block", "row", "storage"],
)
def test_weight_that_cannot_be_read_is_refused(shape, changes, reason):
    with pytest.raises(ValueError, match=reason):
        nf4_weight(*quantize(*shape, **changes))


def test_weight_of_another_shape_is_refused():
    packed, state = quantize(64, 128)
    state.shape = torch.Size((32, 128))
    with pytest.raises(ValueError, match="4096 bytes for 32 rows of 128 weights"):
        nf4_weight(packed, state)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(65, 128, dtype=torch.bfloat16),
        torch.zeros(2, 128),
        torch.zeros(2, 64, dtype=torch.bfloat16),
    ],
    ids=["rows", "type", "columns"],
)
def test_numbers_it_is_not_for_are_refused(x):
    weight = nf4_weight(*quantize(64, 128))
    with pytest.raises(ValueError, match="up to 64 rows of 128 bfloat16 numbers"):
        nf4_matmul(x, weight)


def test_it_is_not_available_on_a_cpu():
    assert not is_available(torch.device("cpu"))


@pytest.mark.parametrize("processors", [58, 108, 132])
@pytest.mark.parametrize("major", [8, 9])
@pytest.mark.parametrize(
    "shape",
    [(4096, 4608), (2048, 4608), (4608, 4096), (36864, 4608), (4608, 36864), (64, 64), (8, 192)],
    ids=str,
)
def test_blocks_divide_the_inputs(shape, processors, major):
    for rows in (16, 32, 64):
        blocks = choose_blocks(*shape, rows, processors, major)
        assert shape[1] % blocks.inputs == 0
        assert 1 <= blocks.splits <= shape[1] // blocks.inputs
        if shape[0] > 1000:
            assert -(-shape[0] // blocks.outputs) * blocks.splits >= processors


SPLIT = [None, Blocks(64, 64, 1, 4, 3), Blocks(64, 64, 2, 4, 3), Blocks(128, 64, 5, 8, 4)]


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 17, 32, 48, 64])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(256, 512), (200, 192), (3, 64), (1024, 2048)], ids=str)
def test_product_is_the_reference(shape, nested, rows):
    packed, state = quantize(*shape, nested=nested, device="cuda")
    weight = nf4_weight(packed, state)
    x = torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(shape[0], device="cuda", dtype=torch.bfloat16)
    for given in (None, bias):
        expected = reference_nf4_matmul(x, packed, state, given)
        for blocks in SPLIT:
            output = nf4_matmul(x, weight, given, blocks)
            # what is left is the rounding of the result
            torch.testing.assert_close(output.float(), expected, rtol=2**-8, atol=1e-4)
            assert torch.equal(output, nf4_matmul(x, weight, given, blocks))


@pytest.mark.gpu
def test_weights_are_rounded_as_bitsandbytes_rounds_them():
    packed, state = quantize(192, 64, device="cuda")
    unit = torch.eye(64, device="cuda", dtype=torch.bfloat16)
    output = nf4_matmul(unit, nf4_weight(packed, state))
    assert torch.equal(output.T, quantized.dequantize_4bit(packed, state))


@pytest.mark.gpu
def test_a_graph_can_hold_it():
    weight = nf4_weight(*quantize(256, 1024, device="cuda"))
    x = torch.randn(8, 1024, device="cuda", dtype=torch.bfloat16)
    expected = nf4_matmul(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = nf4_matmul(x, weight)
    graph.replay()
    assert torch.equal(output, expected)


def test_without_triton_it_is_not_available(monkeypatch):
    monkeypatch.setattr(subject, "triton", None)
    assert not is_available(torch.device("cuda"))
