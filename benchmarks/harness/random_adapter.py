"""A LoRA adapter with random weights for a model directory, as the recipe's training would save it.

Neither factor is zero, so that leaving the adapter out would change answers.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.training.reference import LORA, TARGET_MODULES
from ja_instruct.models.directory import read_provenance, write_provenance

if TYPE_CHECKING:
    import torch

WEIGHT_DEVIATION = 0.02
SEED = 1


def make_adapter(
    directory: Path, model: Path, *, rank: int = LORA["r"], device: str | None = None
) -> dict[str, Any]:
    """Write an adapter with a pair of factors for each of the recipe's seven matrices a layer.

    Args:
        directory: Where to write; it is created.
        model: The model's directory, of which only the configuration is read, and what
            ``ja_instruct.json`` says of its weights.
        rank: Of the factors.
        device: Where they are drawn; the first GPU by default, the CPU without one.

    Returns:
        Weights, bytes and seconds.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    started = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    tensors = draw_factors(model, rank, device)
    path = directory / "adapter_model.safetensors"
    save_file(tensors, path, {"format": "pt"})
    config = LoraConfig(
        **{**LORA, "r": rank},
        target_modules=TARGET_MODULES,
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=str(model),
    )
    config.save_pretrained(str(directory))
    write_provenance(directory, _describe(model, rank))
    return {
        "weights": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": path.stat().st_size,
        "seconds": round(time.perf_counter() - started, 1),
    }


def draw_factors(model: Path, rank: int, device: str | None) -> dict[str, torch.Tensor]:
    """Return the factors by PEFT's names, in float32 as training leaves them, on the CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    # the shapes of a plain model are wanted, not those of packed bits
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(*shape: int) -> torch.Tensor:
        drawn = torch.empty(shape, device=device)
        return drawn.normal_(std=WEIGHT_DEVIATION, generator=generator).cpu()

    tensors = {}
    for name, layer in empty.named_modules():
        if name.rpartition(".")[2] in TARGET_MODULES:
            prefix = f"base_model.model.{name}"
            tensors[f"{prefix}.lora_A.weight"] = draw(rank, layer.in_features)
            tensors[f"{prefix}.lora_B.weight"] = draw(layer.out_features, rank)
    return tensors


def _describe(model: Path, rank: int) -> dict[str, Any]:
    """Return the provenance of an adapter, with the fields that ``sft`` writes."""
    provenance = read_provenance(model)
    source = provenance.get("source", {})
    return {
        "stage": "sft",
        "base": {
            "model_id": source.get("model_id"),
            "revision": source.get("revision"),
            "weights_sha256": provenance.get("weights_sha256"),
            "source_files": source.get("files"),
        },
        "settings": {
            "made_by": "benchmarks/harness/random_adapter.py",
            "seed": SEED,
            "lora_r": rank,
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }


def find_or_make_adapter(directory: Path, model: Path, device: str | None = None) -> None:
    """Make an adapter in ``directory`` unless one for these weights is there; say so."""
    base = read_provenance(directory).get("base", {})
    if base and base["weights_sha256"] == read_provenance(model).get("weights_sha256"):
        print(f"{directory}: there already", flush=True)
        return
    print(f"{directory}: {make_adapter(directory, model, device=device)}", flush=True)
