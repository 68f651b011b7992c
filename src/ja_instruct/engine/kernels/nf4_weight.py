"""NF4 weights of bitsandbytes (arXiv:2305.14314), and decoding them to bfloat16 within a kernel."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ja_instruct.engine.kernels.triton import jit, tl

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

BLOCK = 64
# Scales are stored in 16 bits if that changes none of them by more than 2⁻¹² of its value
FLOAT16_SCALES = (2.0**-14, 2.0**15)
# NF4's codebook: a weight is one of these times the largest absolute weight of its block
CODEBOOK = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Nf4Weight:
    """A weight of (outputs, inputs) as the kernels read it.

    Attributes:
        packed: int16, (outputs, inputs / 4), four weights each: a view of bitsandbytes' bytes.
        scales: float16 or float32, (inputs / 64, outputs), one for each 64 weights.
        codebook: bfloat16, the 16 values.
    """

    packed: torch.Tensor
    scales: torch.Tensor
    codebook: torch.Tensor
    outputs: int
    inputs: int


def nf4_weight(packed: torch.Tensor, state: QuantState) -> Nf4Weight:
    """Return a weight of bitsandbytes without copying the packed weights.

    Raises:
        ValueError: It is not NF4 with blocks of 64 along its rows.
    """
    shape = tuple(state.shape)
    wrong = [
        f"{name} {value!r} instead of {wanted!r}"
        for name, value, wanted in (
            ("type", state.quant_type, "nf4"),
            ("block size", state.blocksize, BLOCK),
            ("storage", packed.dtype, torch.uint8),
            ("dimensions", len(shape), 2),
        )
        if value != wanted
    ]
    if not wrong and shape[1] % BLOCK:
        wrong = [f"rows of {shape[1]} weights, which is not a multiple of {BLOCK}"]
    if not wrong and packed.numel() * 2 != shape[0] * shape[1]:
        wrong = [f"{packed.numel()} bytes for {shape[0]} rows of {shape[1]} weights"]
    codebook = torch.tensor(CODEBOOK, device=packed.device)
    if not wrong and not torch.allclose(state.code.to(codebook), codebook, rtol=0, atol=1e-6):
        wrong = [f"codebook {state.code.tolist()}, which is not NF4's"]
    if wrong:
        raise ValueError(f"a weight cannot be multiplied in four bits: {', '.join(wrong)}")
    outputs, inputs = shape
    return Nf4Weight(
        packed=packed.reshape(-1).view(torch.int16).view(outputs, inputs // 4),
        scales=_scales(state).view(outputs, inputs // BLOCK).T.contiguous(),
        codebook=codebook.to(torch.bfloat16),
        outputs=outputs,
        inputs=inputs,
    )


def _scales(state: QuantState) -> torch.Tensor:
    """Return the scale of each block, in 16 bits if they suffice."""
    from bitsandbytes.functional import dequantize_blockwise

    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    scales = torch.as_tensor(scales, dtype=torch.float32)
    least, most = FLOAT16_SCALES
    # the scale of a block of zeros is close to 0, and may as well be 0
    inside = (scales.abs() < 2.0**-24) | ((scales.abs() > least) & (scales.abs() < most))
    return scales.half() if bool(inside.all()) else scales


def _tables() -> list[int]:
    """Return the high bytes of the codebook in bfloat16, four a number, then the low bytes."""
    rounded = []
    for value in CODEBOOK:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        rounded.append((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    return [
        sum((value >> shift & 255) << 8 * place for place, value in enumerate(rounded[at : at + 4]))
        for shift in (8, 0)
        for at in range(0, 16, 4)
    ]


def _look_up(number: int) -> str:
    """Return the assembly that looks up four weights, a byte of each at a time.

    ``prmt`` selects bytes of two registers by the low three bits of an index: once for each half of
    a table, and once to select the half.
    """
    return "".join(
        f"prmt.b32 {name}{number}, {name}a, {_tables()[first + 1]}, m{number};"
        f"prmt.b32 other, {name}b, {_tables()[first + 3]}, m{number};"
        f"prmt.b32 {name}{number}, {name}{number}, other, s{number};"
        for name, first in (("h", 0), ("l", 4))
    )


def _keep(register: str, number: int) -> str:
    # prmt takes one constant; a second one would be moved to a register each time. The assembler
    # does not know that a lane's mask has exactly one bit, so it computes this sum only once.
    return f"add.u32 {register}, one, {number - 1};"


# Decodes eight weights of two int16 to eight bfloat16, in registers of two: the first weight of
# each int16, the second, and so on. A byte holds its first weight in its high half. About three
# instructions per weight, against eight for shifting, looking up in shared memory and packing.
ASSEMBLY = f"""{{
.reg .b32 m, s, m0, m1, s0, s1, h0, h1, l0, l1, other, one, ha, hb, la, lb;
mov.u32 one, %lanemask_eq;
popc.b32 one, one;
{_keep("ha", _tables()[0])}
{_keep("hb", _tables()[2])}
{_keep("la", _tables()[4])}
{_keep("lb", _tables()[6])}
and.b32 m, $4, 0x77777777;
shr.u32 s, $4, 1;
lop3.b32 s, s, 0x44444444, 0x32321010, 0xea;
prmt.b32 m0, m, m, 0x2020;
prmt.b32 m1, m, m, 0x3131;
prmt.b32 s0, s, s, 0x2020;
prmt.b32 s1, s, s, 0x3131;
{_look_up(0)}
{_look_up(1)}
prmt.b32 $0, l0, h0, 0x7351;
prmt.b32 $1, l0, h0, 0x6240;
prmt.b32 $2, l1, h1, 0x7351;
prmt.b32 $3, l1, h1, 0x6240;
}}"""


@jit()
def _value(codebook: tl.tensor, packed: tl.tensor, shift: tl.constexpr) -> tl.tensor:
    return tl.load(codebook + ((packed.to(tl.int32) >> shift) & 15))


@jit()
def decode(packed: tl.tensor, codebook: tl.tensor, assembly: tl.constexpr) -> Any:
    """Return the first weight of each packed int16, the second, the third and the fourth."""
    if assembly is not None:
        first, second, third, fourth = tl.inline_asm_elementwise(
            assembly,
            "=r,=r,=r,=r,r",
            [packed],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        first, second = _value(codebook, packed, 4), _value(codebook, packed, 0)
        third, fourth = _value(codebook, packed, 12), _value(codebook, packed, 8)
    return first, second, third, fourth
