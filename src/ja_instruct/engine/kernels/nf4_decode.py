"""Looking up NF4's levels within a kernel: in registers, eight weights at a time, or in memory."""

from __future__ import annotations

import struct
from typing import Any

from ja_instruct.engine.kernels.nf4_weight import LEVELS
from ja_instruct.engine.kernels.triton import jit, tl


def _tables() -> list[int]:
    """Return the high bytes of the levels in bfloat16, four a number, then the low bytes."""
    rounded = []
    for level in LEVELS:
        (bits,) = struct.unpack("<I", struct.pack("<f", level))
        rounded.append((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    return [
        sum((level >> shift & 255) << 8 * place for place, level in enumerate(rounded[at : at + 4]))
        for shift in (8, 0)
        for at in range(0, 16, 4)
    ]


def _look_up(number: int) -> str:
    """Return the assembly that looks up four weights, a byte of each at a time.

    ``prmt`` chooses bytes of two registers by the low three bits of a place: so once for each half
    of a table, and once for the halves.
    """
    return "".join(
        f"prmt.b32 {name}{number}, {name}a, {_tables()[first + 1]}, m{number};"
        f"prmt.b32 other, {name}b, {_tables()[first + 3]}, m{number};"
        f"prmt.b32 {name}{number}, {name}{number}, other, s{number};"
        for name, first in (("h", 0), ("l", 4))
    )


def _keep(register: str, number: int) -> str:
    # prmt takes one constant; the other would be moved to a register each time. Of a lane's mask
    # the assembler does not know that it has one bit, so that it computes the sum once.
    return f"add.u32 {register}, one, {number - 1};"


# Eight weights of two int16 become eight bfloat16, in registers of two: the first of each, the
# second, and so on. A byte holds its first weight in its high half. About three instructions a
# weight, where shifting, looking up in shared memory and packing takes eight.
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
def _level(levels: tl.tensor, quad: tl.tensor, shift: tl.constexpr) -> tl.tensor:
    return tl.load(levels + ((quad.to(tl.int32) >> shift) & 15))


@jit()
def decode(quad: tl.tensor, levels: tl.tensor, assembly: tl.constexpr) -> Any:
    """Return the first weights of all quads, the second, the third and the fourth."""
    if assembly is not None:
        first, second, third, fourth = tl.inline_asm_elementwise(
            assembly,
            "=r,=r,=r,=r,r",
            [quad],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        first, second = _level(levels, quad, 4), _level(levels, quad, 0)
        third, fourth = _level(levels, quad, 12), _level(levels, quad, 8)
    return first, second, third, fourth
