"""Verify a merged model: every matrix is that of the base plus the adapter's update, rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.lora_merging import (
    ADAPTER_WEIGHTS,
    checkpoint_shards,
    lora_scaling,
    lora_update,
    match_factors,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ja_instruct.models.directory import ModelDirectory

_REMEDY = "delete the directory and run 'kedro run --pipeline=export' again"


@dataclass(frozen=True)
class MatrixCheck:
    """The comparison of one adapted matrix with the base's."""

    name: str
    weights: int  # elements of the matrix
    changed: int  # of which differ from the base's
    applied: float  # inner product of the change made and the adapter's update
    update: float  # squared norm of the adapter's update


def compare_with_base(
    base: ModelDirectory, adapter: ModelDirectory, merged: ModelDirectory
) -> dict[str, Any]:
    """Return ``check_merged_model``'s figures; one matrix is in memory at a time."""
    from safetensors import safe_open
    from tqdm import tqdm

    scaling = lora_scaling(adapter)
    factors = match_factors(adapter, base)
    checks: list[MatrixCheck] = []
    others = 0
    shards = tqdm(checkpoint_shards(base), desc="export: checking", unit="shard", disable=None)
    with safe_open(adapter.path / ADAPTER_WEIGHTS, framework="pt") as lora:
        for shard in shards:
            with (
                safe_open(base.path / shard, framework="pt") as of_base,
                safe_open(merged.path / shard, framework="pt") as of_merged,
            ):
                for key in of_base.keys():  # noqa: SIM118  (safe_open is not a dictionary)
                    old, new = of_base.get_tensor(key), of_merged.get_tensor(key)
                    if key in factors:
                        update = lora_update(lora, factors[key], scaling)
                        checks.append(_check_matrix(key, old, new, update, merged))
                    else:
                        _require_equal(key, old, new, merged)
                        others += old.numel()
    return _summarize(checks, others, base, merged)


def _check_matrix(
    name: str, old: Tensor, new: Tensor, update: Tensor, merged: ModelDirectory
) -> MatrixCheck:
    """Return how an adapted matrix changed.

    Rounding to the base's type explains a relative difference of half its ``eps``. The sum in
    float32 adds an absolute error, which matters where weight and update nearly cancel.

    Raises:
        InputError: The difference from base plus update is larger than rounding explains.
    """
    import torch

    expected = old.float() + update
    info = torch.finfo(old.dtype)
    # the second term is the spacing of the smallest numbers, which float16 weights can reach
    atol = max(1e-6 * float(expected.abs().max()), info.smallest_normal * info.eps)
    if new.dtype != old.dtype or not torch.allclose(
        new.float(), expected, rtol=info.eps, atol=atol
    ):
        raise InputError(
            f"{merged.path}: '{name}' differs from base plus adapter by more than rounding; "
            f"{_REMEDY}"
        )
    change = new.float() - old.float()
    return MatrixCheck(
        name,
        weights=old.numel(),
        changed=int(change.count_nonzero()),
        applied=float((change * update).sum()),
        update=float(update.square().sum()),
    )


def _require_equal(key: str, old: Tensor, new: Tensor, merged: ModelDirectory) -> None:
    import torch

    if old.dtype != new.dtype or not torch.equal(old, new):
        raise InputError(
            f"{merged.path}: '{key}' differs from the base's, although the adapter does not adapt "
            f"it; {_REMEDY}"
        )


def _summarize(
    checks: list[MatrixCheck], others: int, base: ModelDirectory, merged: ModelDirectory
) -> dict[str, Any]:
    weights = sum(check.weights for check in checks)
    changed = sum(check.changed for check in checks)
    update = sum(check.update for check in checks)
    kept = {check.name: 100 * check.applied / check.update for check in checks if check.update > 0}
    least = min(kept, key=kept.__getitem__)
    sizes = {
        name: sum((one.path / shard).stat().st_size for shard in checkpoint_shards(one)) / 1e6
        for name, one in (("base_mb", base), ("merged_mb", merged))
    }
    return {
        "summary": {
            "matrices": len(checks),
            "matrices_changed": sum(check.changed > 0 for check in checks),
            "adapted_weights_changed_percent": round(100 * changed / weights, 2),
            "weights_changed_percent": round(100 * changed / (weights + others), 2),
            "update_kept_percent": round(100 * sum(check.applied for check in checks) / update, 2),
            **{name: round(size, 1) for name, size in sizes.items()},
        },
        "least_update_kept": {"matrix": least, "percent": round(kept[least], 2)},
        "unchanged_matrices": [check.name for check in checks if not check.changed],
    }
