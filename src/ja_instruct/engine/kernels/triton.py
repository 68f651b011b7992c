"""What the kernels share: Triton, if it is installed, and what a device supports."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for CUDA brings it, and other devices cannot use the kernels
    triton = tl = None

__all__ = ["Traits", "is_available", "jit", "supports_heads", "supports_ptx", "tl", "traits"]

# Head widths that the attention kernels support
WIDTHS = (32, 64, 128, 256)


class Traits(NamedTuple):
    """Multiprocessors, and the major compute capability: 8 is Ampere, 9 Hopper."""

    processors: int
    major: int


@cache
def traits(device: torch.device) -> Traits:
    """Return the traits of a device; without CUDA those of Triton's interpreter."""
    if device.type != "cuda":
        return Traits(4, 9)
    properties = torch.cuda.get_device_properties(device)
    return Traits(properties.multi_processor_count, properties.major)


def is_available(device: torch.device) -> bool:
    """Return whether a device runs the kernels: with Triton, and since Ampere, for bfloat16."""
    return device.type == "cuda" and triton is not None and traits(device).major >= 8


def supports_ptx(device: torch.device) -> bool:
    """Return whether a device supports NVIDIA's assembly.

    PyTorch calls AMD's devices cuda too, and Triton's interpreter has no assembler.
    """
    return device.type == "cuda" and torch.version.hip is None


def supports_heads(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Return whether the attention kernels support heads: 16 bits, on CUDA, of some widths."""
    return (
        triton is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and key.dtype == query.dtype
        and query.shape[-1] in WIDTHS
    )


def jit(*varying: str) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a function a kernel; without Triton it changes nothing.

    The values of ``varying`` parameters (1, or divisible by 16) do not trigger a compilation; names
    that a function does not have are ignored.
    """

    def compile_later(function: Callable[..., Any]) -> Any:
        if triton is None:
            return function
        names = [name for name in varying if name in signature(function).parameters]
        return triton.jit(function, do_not_specialize=names)

    return compile_later
