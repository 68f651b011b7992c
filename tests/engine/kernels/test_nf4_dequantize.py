"""A matrix written out by the kernel, against what it stands for; on a GPU."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from kernel_inputs import quantize

from ja_instruct.engine.kernels.nf4_dequantize import Factors, dequantize
from ja_instruct.engine.kernels.nf4_weight import nf4_weight


@pytest.mark.gpu
@pytest.mark.parametrize("rank", [0, 16, 64, 128])
@pytest.mark.parametrize("shape", [(128, 64), (200, 64 * 9), (3, 192), (64 * 7, 64 * 16)], ids=str)
def test_dequantized_matrix_with_an_adapter(shape, rank):
    outputs, inputs = shape
    packed, state = quantize(outputs, inputs, device="cuda")
    state.dtype = torch.float32
    weight, expected = nf4_weight(packed, state), dequantize_4bit(packed, state)
    factors = None
    if rank:
        first = torch.randn(rank, inputs, device="cuda", dtype=torch.bfloat16)
        # as long as the weights are, so that both count
        second = torch.randn(outputs, rank, device="cuda", dtype=torch.bfloat16) * 0.02
        factors = Factors(first, second, rank**-0.5)
        expected = expected + rank**-0.5 * second.float() @ first.float()
    written = dequantize(weight, factors)
    assert written.dtype == torch.bfloat16
    error = (written.float() - expected).norm() / expected.norm()
    # a level is rounded, and the sum
    assert error < 2**-8
    largest = (written.float() - expected).abs().max()
    assert largest < 2**-7 * expected.abs().max()


@pytest.mark.parametrize(
    ("rank", "can"), [(8, False), (16, True), (48, False), (128, True), (256, False)]
)
def test_ranks_that_can_be_added(rank, can):
    assert Factors(torch.zeros(rank, 64), torch.zeros(3, rank), 1.0).can_be_added is can
