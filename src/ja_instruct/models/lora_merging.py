"""A LoRA adapter merged into its 16-bit base, one matrix at a time (LoRA, arXiv:2106.09685)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.safetensors import read_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch

    from ja_instruct.models.directory import ModelDirectory

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# What else PEFT's LoraConfig can ask for, each of which would merge by another formula.
_OTHER_FORMULAS = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "fan_in_fan_out",
    "lora_bias",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)


@dataclass(frozen=True)
class LoraFactors:
    """The adapter's keys of one adapted matrix W of shape (out, in): A (r, in) and B (out, r)."""

    a: str
    b: str


@dataclass(frozen=True)
class LoraMerge:
    """A merged model on its way to a directory: read and computed while it is written.

    Attributes:
        base: The 16-bit model.
        adapter: The adapter; its tokenizer goes with the merged model.
        scaling: What B A is multiplied by.
        factors: Key of a matrix in the base's checkpoint to the adapter's keys.
        provenance: Written to ``ja_instruct.json``.
        card: Written to ``README.md``.
    """

    base: ModelDirectory
    adapter: ModelDirectory
    scaling: float
    factors: Mapping[str, LoraFactors]
    provenance: dict[str, Any]
    card: str

    def merged_matrices(self, shard: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield key and merged matrix, in the base's type, of every adapted matrix of a shard.

        W + scaling · B A is computed in float32 and rounded once, as PEFT merges.
        """
        from safetensors import safe_open

        with (
            safe_open(self.base.path / shard, framework="pt") as base,
            safe_open(self.adapter.path / ADAPTER_WEIGHTS, framework="pt") as adapter,
        ):
            for key in base.keys():  # noqa: SIM118  (safe_open is no dictionary)
                if key in self.factors:
                    weight = base.get_tensor(key)
                    a = adapter.get_tensor(self.factors[key].a).float()
                    b = adapter.get_tensor(self.factors[key].b).float()
                    update = (b @ a).mul_(self.scaling)
                    yield key, update.add_(weight).to(weight.dtype)


def read_adapter_config(adapter: ModelDirectory) -> dict[str, Any]:
    """Return ``adapter_config.json``."""
    config: dict[str, Any] = json.loads((adapter.path / "adapter_config.json").read_text("utf-8"))
    return config


def lora_scaling(config: Mapping[str, Any]) -> float:
    """Return what B A is multiplied by: alpha / r, with rsLoRA (arXiv:2312.03732) alpha / √r.

    Args:
        config: PEFT's ``adapter_config.json``.

    Raises:
        InputError: The adapter is none of plain LoRA, or it trained more than its factors.

    >>> lora_scaling({"peft_type": "LORA", "r": 16, "lora_alpha": 8})
    0.5
    >>> lora_scaling({"peft_type": "LORA", "r": 16, "lora_alpha": 8, "use_rslora": True})
    2.0
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"adapter_config.json: peft_type is {kind!r}; only LORA can be merged")
    if config.get("bias", "none") != "none":
        raise InputError(
            f"adapter_config.json: bias is {config['bias']!r}, so biases were trained too; only "
            f"an adapter with bias 'none' can be merged (sft.lora.bias)"
        )
    for name in _OTHER_FORMULAS:
        if config.get(name):
            raise InputError(
                f"adapter_config.json: {name} is {config[name]!r}, which is merged by another "
                f"formula than W + scaling · B A; merge this adapter with PEFT's merge_and_unload"
            )
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Return key to first byte and end, within the file, of a safetensors file's tensors.

    The format: 8 bytes with the length of the header (little-endian), the header in JSON, the
    data, to whose beginning the header's ``data_offsets`` refer
    (https://huggingface.co/docs/safetensors/index#format).
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        key: (8 + length + tensor["data_offsets"][0], 8 + length + tensor["data_offsets"][1])
        for key, tensor in header.items()
    }


def checkpoint_shards(model: ModelDirectory) -> list[str]:
    """Return the names of the files that hold a model's weights, as its index has them.

    Raises:
        InputError: A file that the index names is missing.
    """
    index = model.path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.name for path in model.path.glob("*.safetensors"))
    names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    for name in names:
        if not (model.path / name).is_file():
            raise InputError(f"{model.path}: no {name}, which {index.name} names; get it again")
    return names


def match_factors(adapter: ModelDirectory, base: ModelDirectory) -> dict[str, LoraFactors]:
    """Return, for each matrix of the base that the adapter changes, its two factors.

    Raises:
        InputError: The adapter holds something else than pairs of factors, adapts a layer that
            the base does not have, or has factors of other shapes than the layer's.
    """
    found: dict[str, dict[str, str]] = {}
    shapes = {key: tensor.shape for key, tensor in read_headers(adapter.path).items()}
    for key in shapes:
        match = _FACTOR.fullmatch(key)
        if match is None:
            raise InputError(
                f"{adapter.path / ADAPTER_WEIGHTS}: '{key}' is no factor of a LoRA update; only "
                f"lora_A and lora_B of linear layers can be merged"
            )
        found.setdefault(f"{match['module']}.weight", {})[match["factor"]] = key
    shards = set(checkpoint_shards(base))
    targets = {
        key: tensor.shape
        for key, tensor in read_headers(base.path).items()
        if tensor.path.name in shards
    }
    factors = {}
    for target, pair in found.items():
        if set(pair) != {"A", "B"}:
            raise InputError(
                f"{adapter.path / ADAPTER_WEIGHTS}: of '{target}' there is only "
                f"{next(iter(pair.values()))}; train the adapter again"
            )
        if target not in targets:
            raise InputError(
                f"the adapter changes '{target}', which base_model '{base.model_id}' at "
                f"{base.path} does not have; give the base that the adapter was trained on"
            )
        (rank, columns), (rows, other) = shapes[pair["A"]], shapes[pair["B"]]
        if targets[target] != (rows, columns) or rank != other:
            raise InputError(
                f"'{target}' is {targets[target]} in base_model '{base.model_id}', but the "
                f"adapter's update of it has the shape {(rows, columns)}; give the base that the "
                f"adapter was trained on"
            )
        factors[target] = LoraFactors(pair["A"], pair["B"])
    return factors


def refuse_useless_factors(adapter: ModelDirectory, factors: Mapping[str, LoraFactors]) -> None:
    """Raise ``InputError`` when no B holds anything but zeros, or a factor is not finite."""
    import torch
    from safetensors import safe_open

    nonzero = False
    with safe_open(adapter.path / ADAPTER_WEIGHTS, framework="pt") as weights:
        for pair in factors.values():
            a, b = weights.get_tensor(pair.a), weights.get_tensor(pair.b)
            for key, factor in ((pair.a, a), (pair.b, b)):
                if not torch.isfinite(factor).all():
                    raise InputError(
                        f"{adapter.path / ADAPTER_WEIGHTS}: '{key}' holds values that are not "
                        f"finite; training diverged, see train_metrics and train again"
                    )
            nonzero = nonzero or bool(b.any() and a.any())
    if not nonzero:
        raise InputError(
            f"the adapter at {adapter.path} changes nothing: every B A is zero, as before "
            f"training; train it with 'kedro run --pipeline=sft'"
        )
