"""Nodes of ``quantization``."""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ja_instruct import __version__
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import gpu_resources
from ja_instruct.models.cards import quantized_card
from ja_instruct.models.directory import ModelArtifact, ModelDirectory, refuse_quantized
from ja_instruct.models.loading import Device, free_gpu_memory, load_nf4_model
from ja_instruct.pipelines.quantization.gpu_resources import (
    estimate_measurement,
    estimate_quantization,
)
from ja_instruct.pipelines.quantization.layer_streaming import StreamedModel
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.pipelines.quantization.perplexity import (
    Sample,
    Score,
    make_samples,
    score,
)
from ja_instruct.pipelines.quantization.weight_errors import relative_errors, summarize_errors
from ja_instruct.tables.columns import as_dataset, require_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
else:  # Kedro resolves the hints of a node; the library takes seconds to import
    Dataset = Any

logger = logging.getLogger(__name__)

# what says how the weights were made; the others say where and how they were measured
_NOT_SETTINGS = {"chat_template", "gpu", "perplexity_max_tokens"}
PERPLEXITY = (
    "exp of the mean negative log-likelihood of the predicted tokens; texts one by one, BOS first"
)


@gpu_resources(estimate_quantization)
def quantize(
    base_model: ModelDirectory, parameters: QuantizationParameters
) -> tuple[ModelArtifact, dict[str, Any]]:
    """Quantize the linear layers of a 16-bit model to 4 bits (QLoRA, arXiv:2305.14314).

    transformers reads, casts and quantizes a matrix at a time, so that neither the device nor the
    host ever holds the 16-bit model.

    Returns:
        The quantized model with its tokenizer, its provenance with the checksums of every source
        file, and ``quantization_measurements``: seconds and memory (10⁹ bytes).

    Raises:
        InputError: The source is quantized already, so that nobody could say by whom.
    """
    import torch

    refuse_quantized(base_model)
    on_gpu = parameters.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    files = base_model.checksums("quantization: hashing the source")
    hashed = time.perf_counter()
    model = _load_in_4_bits(base_model, parameters)
    tokenizer = base_model.load_tokenizer()
    added_template = bool(parameters.chat_template) and not tokenizer.chat_template
    if added_template:
        tokenizer.chat_template = parameters.chat_template
    measurements = {
        "hashing_seconds": round(hashed - started, 1),
        "quantizing_seconds": round(time.perf_counter() - hashed, 1),
        "model_memory_gb": round(model.get_memory_footprint() / 1e9, 3),
    }
    if on_gpu:
        measurements["gpu_memory_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    provenance = {
        "stage": "quantization",
        "parameters": model.num_parameters(),
        "source": _describe_source(base_model, files),
        "settings": parameters.model_dump(exclude=_NOT_SETTINGS),
        "chat_template_added": added_template,
        "versions": {
            "ja-instruct": __version__,
            **{name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        },
    }
    return ModelArtifact(model, tokenizer, provenance, quantized_card(provenance)), measurements


def _load_in_4_bits(base_model: ModelDirectory, parameters: QuantizationParameters) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    free_gpu_memory()
    compute_dtype = getattr(torch, parameters.compute_dtype)
    return base_model.load_model(
        device_map={"": 0} if parameters.device == "cuda" else "cpu",
        dtype=compute_dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=parameters.quant_type,
            bnb_4bit_use_double_quant=parameters.double_quantization,
            bnb_4bit_compute_dtype=compute_dtype,
        ),
    )


def _describe_source(
    base_model: ModelDirectory, files: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "model_id": base_model.model_id,
        "revision": base_model.revision,
        "model_type": base_model.load_config().get("model_type"),
        "provenance": base_model.provenance,
        "files": files,
    }


@gpu_resources(estimate_measurement)
def measure_quantization(
    base_model: ModelDirectory,
    quantized_model: ModelDirectory,
    quantization_measurements: dict[str, Any],
    perplexity_texts: Dataset,
    parameters: QuantizationParameters,
) -> dict[str, Any]:
    """Compare the 4-bit model with its source: matrix by matrix, and by what both predict.

    Returns:
        ``quantization_report``: ``summary``; ``source`` and ``written`` with the SHA-256 and bytes
        of every file; ``settings``, ``versions``, ``chat_template_added``; ``errors`` of every
        matrix; ``perplexity`` of both models; ``measurements`` of ``quantize``. Sizes in the
        summary are those of the safetensors on disk, in 10⁶ bytes.

    Raises:
        InputError: ``base_model`` is not what ``quantized_model`` was made of.
    """
    provenance = quantized_model.provenance
    _require_same_source(base_model, quantized_model)
    errors = summarize_errors(
        relative_errors(base_model.path, quantized_model.path, parameters.device)
    )
    perplexity = _compare_predictions(base_model, quantized_model, perplexity_texts, parameters)
    reported = ("source", "settings", "chat_template_added", "versions")
    return {
        "summary": _summarize(provenance, errors, perplexity),
        **{key: provenance[key] for key in reported},
        "written": provenance["files"],
        "errors": errors,
        "perplexity": perplexity,
        "measurements": quantization_measurements,
    }


def _summarize(
    provenance: dict[str, Any], errors: dict[str, Any], perplexity: dict[str, Any]
) -> dict[str, float]:
    source_mb = _weights_mb(provenance["source"]["files"])
    quantized_mb = _weights_mb(provenance["files"])
    return {
        "parameters_millions": round(provenance["parameters"] / 1e6, 1),
        "source_mb": round(source_mb, 1),
        "quantized_mb": round(quantized_mb, 1),
        "quantized_percent": round(100 * quantized_mb / source_mb, 1),
        "mean_relative_error": errors["mean"],
        "worst_relative_error": errors["max"],
        **{
            f"perplexity_{name}": perplexity[name]["perplexity"]
            for name in ("base", "quantized")
            if perplexity
        },
    }


def _require_same_source(base_model: ModelDirectory, quantized_model: ModelDirectory) -> None:
    """Compare names and sizes: the bytes were hashed when they were quantized."""
    files = quantized_model.provenance["source"].get("files")
    if files is None:
        raise InputError(
            f"{quantized_model.path}: its provenance does not list the files it was made of, as an "
            f"older version wrote it; run 'kedro run --pipeline=quantization' again"
        )
    for name, noted in files.items():
        path = base_model.path / name
        if not path.is_file() or path.stat().st_size != noted["bytes"]:
            raise InputError(
                f"{path}: not the {noted['bytes']:,} bytes that {quantized_model.path} was made "
                f"of; run 'kedro run --pipeline=quantization' again, or point base_model at "
                f"'{quantized_model.model_id}', revision {quantized_model.revision}"
            )


def _weights_mb(files: dict[str, dict[str, Any]]) -> float:
    weights = (noted for name, noted in files.items() if name.endswith(".safetensors"))
    return sum(int(noted["bytes"]) for noted in weights) / 1e6


def _compare_predictions(
    base_model: ModelDirectory,
    quantized_model: ModelDirectory,
    texts: Dataset,
    parameters: QuantizationParameters,
) -> dict[str, Any]:
    """Return both models' perplexity; nothing where ``perplexity_max_tokens`` is 0."""
    if not parameters.perplexity_max_tokens:
        return {}
    texts = as_dataset(texts, "perplexity_texts")
    require_columns(texts, ("text",), "perplexity_texts")
    tokenizer = base_model.load_tokenizer()
    samples = make_samples(tokenizer, list(texts["text"]), parameters.perplexity_max_tokens)
    if not samples:
        raise InputError(
            "'perplexity_texts' has no text to predict; give it some, or set "
            "quantization.perplexity_max_tokens to 0"
        )
    # one after the other: neither is on the device while the other is
    base = _score_base(base_model, samples, parameters.device)
    quantized = _score_quantized(quantized_model, samples, parameters.device)
    return {
        "definition": PERPLEXITY,
        "texts": len(samples),
        "tokens": base.tokens,
        "characters": base.characters,
        "base": base.as_report(),
        "quantized": quantized.as_report(),
    }


def _score_base(base_model: ModelDirectory, samples: Sequence[Sample], device: Device) -> Score:
    import torch

    # the type that load_nf4_model gives all that is not in 4 bits
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with StreamedModel(base_model, device, dtype) as streamed:
        description = "quantization: perplexity of the base model"
        return score(streamed.model, samples, description, streamed.loaded)


def _score_quantized(
    quantized_model: ModelDirectory, samples: Sequence[Sample], device: Device
) -> Score:
    model = load_nf4_model(quantized_model, device)
    # of the implementations only this one bounds Gemma 2's attention as it was trained
    model.set_attn_implementation("eager")
    return score(model.eval(), samples, "quantization: perplexity in 4 bits")
