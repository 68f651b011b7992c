"""What the kernels of this folder share: Triton where there is one, and what a device is."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with PyTorch for CUDA, and nothing else can use the kernels
    triton = tl = None

__all__ = ["Traits", "is_available", "jit", "supports_heads", "supports_ptx", "tl", "traits"]

# of a head, for the kernels of attention
WIDTHS = (32, 64, 128, 256)


class Traits(NamedTuple):
    """What kernels are cut by.

    Attributes:
        processors: Multiprocessors.
        major: Of the compute capability; 8 is Ampere, 9 Hopper.
    """

    processors: int
    major: int


@cache
def traits(device: torch.device) -> Traits:
    """Return what a device is; anything but CUDA is Triton's interpreter, and small."""
    if device.type != "cuda":
        return Traits(4, 9)
    properties = torch.cuda.get_device_properties(device)
    return Traits(properties.multi_processor_count, properties.major)


def is_available(device: torch.device) -> bool:
    """Return whether kernels run on a device: with Triton, from Ampere on for bfloat16."""
    return device.type == "cuda" and triton is not None and traits(device).major >= 8


def supports_ptx(device: torch.device) -> bool:
    """Return whether a device takes NVIDIA's assembly.

    AMD's devices are called cuda, too, and Triton's interpreter reads none.
    """
    return device.type == "cuda" and torch.version.hip is None


def supports_heads(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Return whether kernels of attention are for such heads: in 16 bits, on CUDA, of a width."""
    return (
        triton is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and key.dtype == query.dtype
        and query.shape[-1] in WIDTHS
    )


def jit(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """Return what makes a function a kernel; without Triton it stays as it is.

    Args:
        varying: Parameters for whose values (1, or divisible by 16) no kernel is compiled anew;
            those that a function does not have are passed over.
    """

    def compile_later(function: Callable[..., Any]) -> Any:
        if triton is None:
            return function
        names = [name for name in varying if name in signature(function).parameters]
        return triton.jit(function, do_not_specialize=names)

    return compile_later
