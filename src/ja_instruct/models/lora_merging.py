"""A LoRA adapter merged into its base, one shard at a time (LoRA, arXiv:2106.09685).

PEFT's ``merge_and_unload`` holds the whole model in memory, 109 GB for Gemma 2 27B, which is
published in float32, so the merge itself is our own; the tests compare every weight with PEFT's.
"""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError
from ja_instruct.models.file_lists import require_indexed_files
from ja_instruct.models.json_files import (
    DEFAULT_ALPHA,
    DEFAULT_RANK,
    GENERATION_FILE,
    read_adapter_config,
    read_end_ids,
    read_generation_config,
    read_weight_map,
)
from ja_instruct.models.safetensors import read_headers
from ja_instruct.models.text_model import text_name, text_settings
from ja_instruct.tables.json_text import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from ja_instruct.models.directory import ModelDirectory

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")

# The tokenizer is saved from the adapter, except for the SentencePiece model: transformers
# does not write it, and llama.cpp's converter reads it.
_COPIED_FROM_BASE = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

# Options of PEFT's LoraConfig that merge by another formula.
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
class MergedModel:
    """A base model with an adapter merged into it, computed while it is saved.

    ``scaling`` is the factor of B A; ``factors`` is keyed by the matrices of the base's checkpoint;
    ``end_ids`` are the tokens with which training ends an answer.
    """

    base: ModelDirectory
    adapter: ModelDirectory
    scaling: float
    factors: Mapping[str, LoraFactors]
    end_ids: tuple[int, ...]

    def save_pretrained(self, save_directory: Path, /, **kwargs: Any) -> None:
        """Write the merged weights in the base's shards, and the base's configuration.

        The merged matrices of one shard are in memory at a time.

        Raises:
            InputError: The disk has not enough free space.
        """
        from safetensors import safe_open
        from safetensors.torch import save_file
        from tqdm import tqdm

        shards = checkpoint_shards(self.base)
        needed = sum((self.base.path / name).stat().st_size for name in shards)
        free = shutil.disk_usage(save_directory.parent).free
        if free < needed:
            raise InputError(
                f"about {needed / 1e9:.1f} GB of disk are needed for the merged model in "
                f"{save_directory.parent}, {free / 1e9:.1f} GB are free; make room, or point its "
                f"catalog entry elsewhere"
            )
        save_directory.mkdir()
        with safe_open(self.adapter.path / ADAPTER_WEIGHTS, framework="pt") as lora:
            for name in tqdm(shards, desc="export: merging", unit="shard", disable=None):
                with safe_open(self.base.path / name, framework="pt") as base:
                    tensors = {
                        key: self._merged(key, base.get_tensor(key), lora)
                        for key in base.keys()  # noqa: SIM118  (safe_open is not a dictionary)
                    }
                    save_file(tensors, save_directory / name, base.metadata())
        for name in _COPIED_FROM_BASE:
            if (self.base.path / name).is_file():
                shutil.copyfile(self.base.path / name, save_directory / name)
        self._write_end_ids(save_directory)

    def _write_end_ids(self, directory: Path) -> None:
        """Add ``end_ids`` to the base's, so that other programs end answers there too."""
        known = read_end_ids(self.base.path, self.base.remedy)
        if set(self.end_ids) <= set(known):
            return
        settings = read_generation_config(self.base.path, self.base.remedy)
        if not settings:  # without the file, transformers takes these from config.json
            config = text_settings(self.base.load_config())
            names = ("bos_token_id", "pad_token_id")
            settings = {name: config[name] for name in names if config.get(name) is not None}
        settings["eos_token_id"] = list(dict.fromkeys([*known, *self.end_ids]))
        (directory / GENERATION_FILE).write_text(as_json(settings), "utf-8")

    def _merged(self, key: str, weight: Tensor, lora: Any) -> Tensor:
        """Return W + scaling · B A, computed in float32 and rounded once, as PEFT merges."""
        if key not in self.factors:
            return weight
        update = lora_update(lora, self.factors[key], self.scaling)
        return update.add_(weight).to(weight.dtype)


def lora_update(lora: Any, factors: LoraFactors, scaling: float) -> Tensor:
    """Return scaling · B A of one matrix, (out, in) in float32, from weights of ``safe_open``."""
    a, b = lora.get_tensor(factors.a).float(), lora.get_tensor(factors.b).float()
    update: Tensor = (b @ a).mul_(scaling)
    return update


def lora_scaling(adapter: ModelDirectory) -> float:
    """Return the factor of B A: alpha / r, or with rsLoRA (arXiv:2312.03732) alpha / √r.

    Raises:
        InputError: The adapter is not plain LoRA, or weights besides its factors were trained.
    """
    config = read_adapter_config(adapter.path, adapter.remedy)
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
    rank = config.get("r", DEFAULT_RANK)
    return float(
        config.get("lora_alpha", DEFAULT_ALPHA)
        / (math.sqrt(rank) if config.get("use_rslora") else rank)
    )


def checkpoint_shards(model: ModelDirectory) -> list[str]:
    """Return the names of a model's weight files, from its index if it has one.

    Raises:
        InputError: A file that the index names is missing.
    """
    names = [path.name for path in model.path.glob("*.safetensors")]
    require_indexed_files(model.path, names, model.remedy)
    weight_map = read_weight_map(model.path, model.remedy)
    return sorted(names if weight_map is None else set(weight_map.values()))


def match_factors(adapter: ModelDirectory, base: ModelDirectory) -> dict[str, LoraFactors]:
    """Return the two factors of each matrix of the base that the adapter changes.

    The keys are the names in the base's checkpoint; an adapter of a multimodal checkpoint's
    language model has other names.

    Raises:
        InputError: The adapter contains other weights than pairs of factors, adapts a layer that
            the base does not have, or its factors do not have the layer's shape.
    """
    adapter_shapes = {key: tensor.shape for key, tensor in read_headers(adapter.path).items()}
    shards = set(checkpoint_shards(base))
    base_shapes = {
        key: tensor.shape
        for key, tensor in read_headers(base.path).items()
        if tensor.path.name in shards
    }
    stored = {text_name(key): key for key in base_shapes}
    factors = {}
    for target, pair in _pair_factors(adapter_shapes, adapter).items():
        if target not in stored:
            raise InputError(
                f"the adapter changes '{target}', which base_model '{base.model_id}' at "
                f"{base.path} does not have; give the base that the adapter was trained on"
            )
        (rank, columns), (rows, other) = adapter_shapes[pair.a], adapter_shapes[pair.b]
        key = stored[target]
        if base_shapes[key] != (rows, columns) or rank != other:
            raise InputError(
                f"'{key}' is {base_shapes[key]} in base_model '{base.model_id}', but the "
                f"adapter's update has the shape {(rows, columns)}; give the base that the adapter "
                f"was trained on"
            )
        factors[key] = pair
    return factors


def _pair_factors(keys: Mapping[str, Any], adapter: ModelDirectory) -> dict[str, LoraFactors]:
    weights = adapter.path / ADAPTER_WEIGHTS
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        match = _FACTOR.fullmatch(key)
        if match is None:
            raise InputError(
                f"{weights}: '{key}' is not a factor of a LoRA update; only lora_A and lora_B of "
                f"linear layers can be merged"
            )
        found.setdefault(f"{match['module']}.weight", {})[match["factor"]] = key
    for target, pair in found.items():
        if set(pair) != {"A", "B"}:
            raise InputError(
                f"{weights}: '{target}' has only {next(iter(pair.values()))}; train the adapter "
                f"again"
            )
    return {target: LoraFactors(pair["A"], pair["B"]) for target, pair in found.items()}


def refuse_useless_factors(adapter: ModelDirectory, factors: Mapping[str, LoraFactors]) -> None:
    """Raise ``InputError`` if every update is zero, or if a factor is not finite."""
    import torch
    from safetensors import safe_open

    path = adapter.path / ADAPTER_WEIGHTS
    is_trained = False
    with safe_open(path, framework="pt") as lora:
        for pair in factors.values():
            tensors = {key: lora.get_tensor(key) for key in (pair.a, pair.b)}
            for key, factor in tensors.items():
                if not torch.isfinite(factor).all():
                    raise InputError(
                        f"{path}: '{key}' holds values that are not finite; training diverged, see "
                        f"train_metrics and train again"
                    )
            is_trained = is_trained or all(bool(factor.any()) for factor in tensors.values())
    if not is_trained:
        raise InputError(
            f"the adapter at {adapter.path} changes nothing: every B A is zero, as before "
            f"training; train it with 'kedro run --pipeline=sft'"
        )
