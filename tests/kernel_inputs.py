"""Inputs of the kernels, and NF4 weights as the kernels use them."""

import bitsandbytes.functional as quantized
import torch

from ja_instruct.engine.kernels.nf4_weight import Nf4Weight

# of the four weights in 16 bits, in their order
SHIFTS = (4, 0, 12, 8)


def query_and_key(tokens=1, width=64, dtype=torch.bfloat16, device="cpu", heads=4):
    """Queries and keys whose shapes, types and device decide whether a kernel supports them."""
    query = torch.zeros(2, heads, tokens, width, dtype=dtype, device=device)
    return query, torch.zeros(2, 2, 9, width, dtype=dtype, device=device)


def attention_inputs(positions, shape, window, dtype):
    """Queries, keys, values and mask on a GPU.

    ``positions`` are those of the tokens, (sequences or 1, tokens), and ``shape`` is sequences,
    heads, key heads, span and width. Keys and values are views of a longer cache.
    """
    sequences, heads, key_heads, span, width = shape
    torch.manual_seed(0)
    query = torch.randn(sequences, positions.shape[1], heads, width).transpose(1, 2) * 2
    cache = torch.randn(2, sequences, key_heads, span + 40, width)
    behind = positions[:, None, :, None] - torch.arange(span)
    seen = (behind >= 0) & ((behind < window) if window else True)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(dtype).min)
    query, keys, values, mask = (one.to("cuda", dtype) for one in (query, *cache, mask))
    return query, keys[:, :, :span], values[:, :, :span], mask


def quantize(outputs, inputs, *, nested=True, device="cpu", **changes):
    """Packed weights and state of a random matrix in NF4."""
    torch.manual_seed(0)
    weight = (torch.randn(outputs, inputs) * 0.02).to(device, torch.bfloat16)
    settings = {"quant_type": "nf4", "blocksize": 64, "compress_statistics": nested}
    return quantized.quantize_4bit(weight, **{**settings, **changes})


def dequantized(weight: Nf4Weight) -> torch.Tensor:
    """The weights as the kernels multiply them: codebook values times their blocks' scales."""
    shifts = torch.tensor(SHIFTS, device=weight.packed.device)
    places = (weight.packed[..., None].int() >> shifts) & 15
    values = weight.codebook[places.view(weight.outputs, -1)].float()
    return values * weight.scales.T.float().repeat_interleave(64, dim=1)
