"""The 4-bit kernel against weights written out; what it reads and refuses, without a GPU."""

import operator
import random
import re

import bitsandbytes.functional as quantized
import pytest
import torch
from kernel_inputs import dequantized, quantize

from ja_instruct.engine.kernels import triton as triton_kernels
from ja_instruct.engine.kernels.nf4_matmul import (
    Blocks,
    LowRank,
    arrange,
    choose_blocks,
    cut_work,
    nf4_matmul,
)
from ja_instruct.engine.kernels.nf4_weight import ASSEMBLY, CODEBOOK, nf4_weight
from ja_instruct.engine.kernels.triton import is_available


def reference_nf4_matmul(x, packed, state, bias=None):
    """Multiply with the weights written out in bfloat16, in float32."""
    output = x.float() @ quantized.dequantize_4bit(packed, state).float().T
    return output if bias is None else output + bias.float()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(128, 256), (200, 192), (3, 64)], ids=str)
def test_packed_weights_are_decoded_in_order(shape, nested):
    packed, state = quantize(*shape, nested=nested)
    weight = nf4_weight(packed, state)
    assert (weight.outputs, weight.inputs) == shape
    expected = quantized.dequantize_4bit(packed, state).float()
    # a level is rounded, and so is bitsandbytes' product with its scale
    torch.testing.assert_close(dequantized(weight), expected, rtol=2**-7, atol=0)


def test_packed_weights_are_not_copied():
    packed, state = quantize(128, 128)
    assert nf4_weight(packed, state).packed.data_ptr() == packed.data_ptr()


@pytest.mark.parametrize(
    ("factor", "kind"), [(1, torch.float16), (1e-6, torch.float32), (1e7, torch.float32)]
)
def test_scales_are_16_bit_if_possible(factor, kind):
    torch.manual_seed(0)
    packed, state = quantized.quantize_4bit(
        torch.randn(64, 128) * 0.02 * factor, quant_type="nf4", blocksize=64
    )
    weight = nf4_weight(packed, state)
    assert weight.scales.dtype == kind
    torch.testing.assert_close(
        weight.scales.T.float().reshape(-1), state.absmax, rtol=2**-11, atol=0
    )


def test_blocks_of_zeros_have_a_scale_of_zero():
    packed, state = quantized.quantize_4bit(torch.zeros(64, 128), quant_type="nf4", blocksize=64)
    weight = nf4_weight(packed, state)
    assert weight.scales.dtype == torch.float16
    assert not dequantized(weight).any()


def test_rows_are_arranged_like_packed_weights():
    x = torch.arange(2 * 128).view(2, 128)
    arranged = arrange(x)
    assert arranged.shape == (2, 2, 64)
    for block, place, row, quad in [(0, 0, 0, 0), (1, 2, 1, 5), (0, 3, 1, 15)]:
        assert arranged[block, row, 16 * place + quad] == x[row, 64 * block + 4 * quad + place]


def permute_bytes(low, high, selector):
    data = [*low.to_bytes(4, "little"), *high.to_bytes(4, "little")]
    places = [selector >> 4 * place & 15 for place in range(4)]
    # the highest bit of a place would repeat the sign of the byte
    return int.from_bytes(bytes(data[place] for place in places), "little")


OPERATIONS = {
    "mov.u32": int,
    "popc.b32": int.bit_count,
    "add.u32": lambda a, b: a + b & 0xFFFFFFFF,
    "and.b32": operator.and_,
    "shr.u32": operator.rshift,
    "lop3.b32": lambda a, b, c, table: {0xEA: a & b | c}[table],
    "prmt.b32": permute_bytes,
}


def run_assembly(word):
    """Return what the assembly makes of two int16 in a register, by PTX's rules."""
    # a lane's own bit
    registers = {"$4": word, "%lanemask_eq": 1 << 9}
    for line in re.sub("[{}]", "", ASSEMBLY).split(";"):
        operation, _, rest = line.strip().partition(" ")
        if operation not in ("", ".reg"):
            to, *names = (name.strip() for name in rest.split(","))
            given = [registers[name] if name in registers else int(name, 0) for name in names]
            registers[to] = OPERATIONS[operation](*given)
    return [registers[f"${number}"] for number in range(4)]


def test_assembly_decodes_each_weight():
    codebook = torch.tensor(CODEBOOK).to(torch.bfloat16).view(torch.int16).tolist()
    chance = random.Random(0)
    words = [chance.getrandbits(32) for _ in range(300)] + [0, 2**32 - 1]
    for word in words:
        for number, register in enumerate(run_assembly(word)):
            for half in (0, 1):
                byte = word >> 16 * half + 8 * (number // 2) & 255
                place = byte & 15 if number % 2 else byte >> 4
                assert register >> 16 * half & 0xFFFF == codebook[place] & 0xFFFF


@pytest.mark.parametrize(
    ("shape", "changes", "reason"),
    [
        ((64, 128), {"quant_type": "fp4"}, "type 'fp4' instead of 'nf4'"),
        ((64, 128), {"blocksize": 128}, "block size 128 instead of 64"),
        ((64, 96), {}, "rows of 96 weights, which is not a multiple of 64"),
        ((64, 128), {"quant_storage": torch.float32}, "storage torch.float32 instead of"),
    ],
    ids=["type", "block", "row", "storage"],
)
def test_unsupported_weight_is_refused(shape, changes, reason):
    with pytest.raises(ValueError, match=reason):
        nf4_weight(*quantize(*shape, **changes))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("shape", torch.Size((32, 128)), "4096 bytes for 32 rows of 128 weights"),
        ("code", torch.tensor(CODEBOOK) + 0.01, "which is not NF4's"),
    ],
)
def test_weight_with_another_state_is_refused(name, value, reason):
    packed, state = quantize(64, 128)
    setattr(state, name, value)
    with pytest.raises(ValueError, match=reason):
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
def test_unsupported_input_is_refused(x):
    weight = nf4_weight(*quantize(64, 128))
    with pytest.raises(ValueError, match="up to 64 rows of 128 bfloat16 numbers"):
        nf4_matmul(x, weight)


@pytest.mark.parametrize("processors", [1, 58, 108, 132])
@pytest.mark.parametrize("major", [8, 9, 12])
@pytest.mark.parametrize(
    "shape",
    [(4096, 4608), (2048, 4608), (4608, 4096), (36864, 4608), (4608, 36864), (64, 64), (8, 192)],
    ids=str,
)
def test_shares_are_equal_and_cover_all(shape, processors, major):
    blocks = choose_blocks(processors, major)
    cut = cut_work(*shape, blocks)
    assert cut.total == cut.chunks * -(-shape[0] // blocks.outputs)
    assert (cut.programs - 1) * cut.share < cut.total <= cut.programs * cut.share
    assert cut.programs <= blocks.programs
    touched = [set() for _ in range(cut.total // cut.chunks)]
    for chunk in range(cut.total):
        touched[chunk // cut.chunks].add(chunk // cut.share)
    for tile, programs in enumerate(touched):
        parts = [program - tile * cut.chunks // cut.share for program in sorted(programs)]
        assert parts == list(range(len(parts)))
    assert max(map(len, touched)) == cut.parts


WAYS = [
    None,
    Blocks(64, 1, 4, 3),
    Blocks(64, 7, 4, 3, joined=True),
    Blocks(128, 50, 8, 4),
    Blocks(128, 3, 4, 3, joined=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 17, 32, 48, 64])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(256, 512), (200, 192), (3, 64), (1024, 2048)], ids=str)
def test_product_equals_the_reference(shape, nested, rows):
    packed, state = quantize(*shape, nested=nested, device="cuda")
    weight = nf4_weight(packed, state)
    x = torch.randn(rows, shape[1], device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(shape[0], device="cuda", dtype=torch.bfloat16)
    for given in (None, bias):
        expected = reference_nf4_matmul(x, packed, state, given)
        for blocks in WAYS:
            output = nf4_matmul(x, weight, given, blocks=blocks)
            difference = (output.float() - expected).norm() / expected.norm()
            # two roundings of a weight, and one of the result
            assert difference < 2**-7
            assert torch.equal(output, nf4_matmul(x, weight, given, blocks=blocks))


@pytest.mark.gpu
@pytest.mark.parametrize("rank", [16, 64, 128])
def test_adapter_is_added(rank):
    packed, state = quantize(200, 512, device="cuda")
    weight = nf4_weight(packed, state)
    x = torch.randn(5, 512, device="cuda", dtype=torch.bfloat16)
    wider = torch.randn(5, 3 * rank, device="cuda", dtype=torch.bfloat16)
    second = torch.randn(200, rank, device="cuda", dtype=torch.bfloat16)
    narrow = wider[:, rank : 2 * rank]
    without = nf4_matmul(x, weight).float()
    for blocks in WAYS:
        output = nf4_matmul(x, weight, low_rank=LowRank(narrow, second, 1.5), blocks=blocks)
        expected = without + 1.5 * narrow.float() @ second.float().T
        torch.testing.assert_close(output.float(), expected, rtol=2**-6, atol=2**-5)


@pytest.mark.gpu
def test_weights_are_codebook_values_times_scales():
    packed, state = quantize(192, 64, device="cuda")
    weight = nf4_weight(packed, state)
    unit = torch.eye(64, device="cuda", dtype=torch.bfloat16)
    assert torch.equal(nf4_matmul(unit, weight).T, dequantized(weight).to(torch.bfloat16))


@pytest.mark.gpu
def test_cuda_graph_captures_it(replayed):
    weight = nf4_weight(*quantize(256, 1024, device="cuda"))
    x = torch.randn(8, 1024, device="cuda", dtype=torch.bfloat16)
    expected = nf4_matmul(x, weight)
    assert torch.equal(replayed(lambda: nf4_matmul(x, weight)), expected)


def test_kernels_need_triton_and_a_gpu(monkeypatch):
    assert not is_available(torch.device("cpu"))
    monkeypatch.setattr(triton_kernels, "triton", None)
    assert not is_available(torch.device("cuda"))
