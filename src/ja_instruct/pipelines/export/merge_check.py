"""A merged model against base and adapter: does every matrix do what both did together?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.lora_merging import (
    ADAPTER_WEIGHTS,
    checkpoint_shards,
    lora_scaling,
    match_factors,
    read_adapter_config,
    refuse_useless_factors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from ja_instruct.models.directory import ModelDirectory
    from ja_instruct.pipelines.export.parameters import ExportParameters

# Rows are compared in float64; a block of this many elements takes 32 MB.
_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True)
class MatrixCheck:
    """What the comparison of one matrix found.

    Attributes:
        name: Its key in the checkpoint.
        weights: Its number of elements.
        changed: How many of them differ from the base's.
        deviation: Largest share of what rounding can explain; above 1 something else is wrong.
        relative_deviation: Largest deviation of an output, relative to Σ |w| |x|.
        applied: Inner product of the change made and the adapter's update.
        update: Squared norm of the adapter's update.
    """

    name: str
    weights: int
    changed: int
    deviation: float
    relative_deviation: float
    applied: float
    update: float


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices that cover ``rows``, each of about four million elements.

    >>> list(row_blocks(3, 2**21))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    step = max(1, _BLOCK_ELEMENTS // columns)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_matrix(
    name: str,
    base: Any,
    merged: Any,
    factors: tuple[torch.Tensor, torch.Tensor],
    scaling: float,
    inputs: torch.Tensor,
) -> MatrixCheck:
    """Compare W' x with W x + scaling · B (A x), row by row.

    W' is W + scaling · B A, computed in float32 and rounded to the type of W with unit roundoff u,
    so in each row the two differ by no more than Σ |x| (u |w'| + (r + 3) 2⁻²⁴ (|w| + scaling
    (|B| |A|))) and the smallest number of the type a weight (Higham, Accuracy and Stability
    of Numerical Algorithms, 2nd ed., sections 2.1 and 3.1). The comparison itself is in float64.

    Args:
        name: Of the matrix.
        base: W (out, in), anything whose slices of rows are tensors.
        merged: W' (out, in), likewise.
        factors: A (r, in) and B (out, r).
        scaling: Of the update.
        inputs: x (in, n), float64.
    """
    import torch

    a, b = (factor.double() for factor in factors)
    rank, columns = a.shape
    through = scaling * (a @ inputs)
    magnitudes = inputs.abs()
    most_through = abs(scaling) * (a.abs() @ magnitudes)
    changed, deviation, relative, applied, update = 0, 0.0, 0.0, 0.0, 0.0
    for rows in row_blocks(b.shape[0], columns):
        old, new = base[rows], merged[rows]
        info = torch.finfo(old.dtype)
        roundoff, smallest = info.eps / 2, info.smallest_normal * info.eps
        changed += int((old != new).sum())
        old, new = old.double(), new.double()
        delta = scaling * (b[rows] @ a)
        applied += float(((new - old) * delta).sum())
        update += float((delta * delta).sum())
        difference = (new @ inputs - (old @ inputs + b[rows] @ through)).abs()
        size = new.abs() @ magnitudes
        in_float32 = (rank + 3) * 2**-24 * (old.abs() @ magnitudes + b[rows].abs() @ most_through)
        # 1 + 2 u: the bound of one rounding is relative to the exact value, not to the rounded
        bound = roundoff * (1 + 2 * roundoff) * size + in_float32 + smallest * magnitudes.sum(0)
        deviation = _larger(deviation, float((difference / bound).max()))
        relative = _larger(relative, float((difference / size.clamp_min(1e-300)).max()))
    return MatrixCheck(name, b.shape[0] * columns, changed, deviation, relative, applied, update)


def _larger(one: float, other: float) -> float:
    """Return the larger; NaN when either is (``max`` would lose it)."""
    return other if math.isnan(other) or other > one else one


def compare_with_base(
    base: ModelDirectory,
    adapter: ModelDirectory,
    merged: ModelDirectory,
    parameters: ExportParameters,
) -> dict[str, Any]:
    """Compare every tensor of the merged model with the base's; return summary and lists.

    Raises:
        InputError: See ``check_merged_model``.
    """
    import torch
    from safetensors import safe_open
    from tqdm import tqdm

    scaling = lora_scaling(read_adapter_config(adapter))
    factors = match_factors(adapter, base)
    refuse_useless_factors(adapter, factors)
    generator = torch.Generator().manual_seed(parameters.seed)
    checks: list[MatrixCheck] = []
    others = 0
    with safe_open(adapter.path / ADAPTER_WEIGHTS, framework="pt") as lora:
        for shard in tqdm(checkpoint_shards(base), desc="export: checking", disable=None):
            with (
                safe_open(base.path / shard, framework="pt") as old,
                safe_open(merged.path / shard, framework="pt") as new,
            ):
                for key in old.keys():  # noqa: SIM118  (safe_open is no dictionary)
                    tensors = (old.get_slice(key), new.get_slice(key))
                    if key not in factors:
                        _require_equal(key, *tensors, merged)
                        others += math.prod(tensors[0].get_shape())
                        continue
                    pair = (lora.get_tensor(factors[key].a), lora.get_tensor(factors[key].b))
                    shape = (pair[0].shape[1], parameters.check_inputs)
                    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
                    check = check_matrix(key, *tensors, pair, scaling, inputs)
                    _require_close(check, merged)
                    checks.append(check)
    return _summary(checks, others, base, merged)


def _require_equal(key: str, old: Any, new: Any, merged: ModelDirectory) -> None:
    shape = tuple(old.get_shape())
    same = shape == tuple(new.get_shape()) and old.get_dtype() == new.get_dtype()
    blocks = row_blocks(shape[0], math.prod(shape[1:])) if shape else [...]
    if not same or any(not _equal_bytes(old[rows], new[rows]) for rows in blocks):
        raise InputError(
            f"{merged.path}: '{key}' differs from the base's, though the adapter leaves it alone; "
            f"delete the directory and run 'kedro run --pipeline=export' again"
        )


def _equal_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    # as bytes, because NaN is equal to nothing
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def _require_close(check: MatrixCheck, merged: ModelDirectory) -> None:
    if not check.deviation <= 1:
        raise InputError(
            f"{merged.path}: '{check.name}' gives other results than base and adapter together "
            f"({check.deviation:.3g} times what rounding can explain); delete the directory and "
            f"run 'kedro run --pipeline=export' again"
        )


def _summary(
    checks: list[MatrixCheck], others: int, base: ModelDirectory, merged: ModelDirectory
) -> dict[str, Any]:
    weights = sum(check.weights for check in checks)
    changed = sum(check.changed for check in checks)
    worst = max(checks, key=lambda check: check.deviation)
    kept = {check.name: 100 * check.applied / check.update for check in checks if check.update > 0}
    update = sum(check.update for check in checks)
    sizes = {
        name: sum((one.path / shard).stat().st_size for shard in checkpoint_shards(one)) / 1e6
        for name, one in (("base_mb", base), ("merged_mb", merged))
    }
    least = min(kept, key=kept.__getitem__)
    return {
        "summary": {
            "matrices": len(checks),
            "matrices_changed": sum(check.changed > 0 for check in checks),
            "adapted_weights_changed_percent": round(100 * changed / weights, 2),
            "weights_changed_percent": round(100 * changed / (weights + others), 2),
            "worst_deviation": round(worst.deviation, 4),
            "worst_relative_deviation": max(check.relative_deviation for check in checks),
            "update_kept_percent": round(100 * sum(check.applied for check in checks) / update, 2),
            **{name: round(size, 1) for name, size in sizes.items()},
        },
        "worst_deviation_in": worst.name,
        "least_update_kept": {"matrix": least, "percent": round(kept[least], 2)},
        "unchanged_matrices": [check.name for check in checks if not check.changed],
    }
