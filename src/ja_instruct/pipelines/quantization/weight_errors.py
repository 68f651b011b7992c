"""Relative errors of the 4-bit matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.safetensors import packed_matrices, read_headers
from ja_instruct.models.text_model import text_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from ja_instruct.models.loading import Device
    from ja_instruct.models.safetensors import TensorHeader

WORST = 10


def relative_errors(source: Path, quantized: Path, device: Device) -> dict[str, float]:
    """Return ‖W - dequantized‖ / ‖W‖ (Frobenius) of every 4-bit matrix by its name.

    W is the matrix of the publisher's directory ``source``; both are compared in float32. Matrices
    are read one by one, so memory for three of the largest is enough.

    Raises:
        InputError: The 4-bit directory was not made from the source, or a matrix of the source
            holds values that are not finite.
    """
    from tqdm import tqdm

    originals = {text_name(name): header for name, header in read_headers(source).items()}
    headers = read_headers(quantized)
    packed = packed_matrices(headers)
    unknown = sorted(packed.keys() - originals.keys())
    if unknown:
        raise InputError(
            f"'{unknown[0]}' of {quantized} is not in {source}, so it was not made from this "
            f"source; run 'kedro run --pipeline=quantization' again"
        )
    errors = {}
    for name in tqdm(packed, desc="quantization: errors", unit="matrix", disable=None):
        weight = originals[name].load().to(device).float()
        dequantized = _dequantize(headers, name, device)
        errors[name] = float((weight - dequantized).norm() / weight.norm())
        # on a GPU a value that is not a number is quantized like any other
        if not math.isfinite(errors[name]) and not weight.isfinite().all():
            raise InputError(
                f"{originals[name].path}: '{name}' holds values that are not finite; download the "
                f"file again"
            )
    return errors


def _dequantize(headers: Mapping[str, TensorHeader], name: str, device: Device) -> Tensor:
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit

    # bitsandbytes stores state and constants under the matrix's name with suffixes
    prefix = f"{name}."
    stored = {
        key.removeprefix(prefix): header.load()
        for key, header in headers.items()
        if key.startswith(prefix)
    }
    state = QuantState.from_dict(stored, device=torch.device(device))
    # the exact NF4 values, not rounded to the type that the layers compute in
    state.dtype = torch.float32
    dequantized: Tensor = dequantize_4bit(headers[name].load().to(device), state)
    return dequantized


def summarize_errors(errors: Mapping[str, float]) -> dict[str, Any]:
    """Return mean and maximum of the errors, overall and per kind of matrix, and the worst.

    >>> found = summarize_errors({"0.q_proj.weight": 0.08, "1.q_proj.weight": 0.1})
    >>> found["mean"], found["by_kind"]
    (0.09, {'q_proj': {'matrices': 2, 'mean': 0.09, 'max': 0.1}})
    """
    kinds: dict[str, list[float]] = {}
    for name, error in errors.items():
        kinds.setdefault(name.removesuffix(".weight").rsplit(".", maxsplit=1)[-1], []).append(error)
    worst = sorted(errors.items(), key=lambda item: -item[1])[:WORST]
    return {
        "definition": "Frobenius norm of W - dequantized(Q), divided by that of W",
        **_mean_and_max(list(errors.values())),
        "by_kind": {
            kind: {"matrices": len(found), **_mean_and_max(found)} for kind, found in kinds.items()
        },
        "worst": [{"matrix": name, "relative_error": round(error, 6)} for name, error in worst],
        "by_matrix": {name: round(error, 6) for name, error in errors.items()},
    }


def _mean_and_max(errors: list[float]) -> dict[str, float]:
    return {"mean": round(sum(errors) / len(errors), 6), "max": round(max(errors), 6)}
