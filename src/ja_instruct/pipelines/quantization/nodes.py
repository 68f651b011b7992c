"""Nodes of ``quantization``."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ja_instruct import __version__
from ja_instruct.errors import InputError
from ja_instruct.memory.resources import gpu_resources
from ja_instruct.models.cards import quantized_card
from ja_instruct.models.directory import ModelArtifact, ModelDirectory, refuse_quantized
from ja_instruct.models.json_files import read_end_ids
from ja_instruct.models.loading import Device, load_nf4_model
from ja_instruct.models.text_model import mark_multimodal
from ja_instruct.models.vocabulary import check_tokenizer
from ja_instruct.pipelines.quantization.gpu_resources import (
    estimate_measurement,
    estimate_quantization,
)
from ja_instruct.pipelines.quantization.layer_streaming import StreamedModel
from ja_instruct.pipelines.quantization.loading import load_in_4_bits
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters
from ja_instruct.pipelines.quantization.perplexity import Sample, Score, make_samples, score
from ja_instruct.pipelines.quantization.weight_errors import relative_errors, summarize_errors
from ja_instruct.tables.columns import as_dataset, require_columns
from kedro_freshness import unaffected_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ja_instruct.models.checksums import FileRecord
else:  # Kedro resolves the hints of a node; the library takes seconds to import
    Dataset = Any

logger = logging.getLogger(__name__)

# These parameters do not influence the weights.
_NOT_SETTINGS = {"chat_template", "gpu", "perplexity_max_tokens"}
PERPLEXITY = (
    "exp of the mean negative log-likelihood of the predicted tokens; texts one by one, BOS first"
)


@unaffected_by(
    "params:quantization.device",
    "params:quantization.gpu",
    "params:quantization.perplexity_max_tokens",
)
@gpu_resources(estimate_quantization)
def quantize(base_model: ModelDirectory, parameters: QuantizationParameters) -> ModelArtifact:
    """Quantize the linear layers of a 16- or 32-bit model to 4 bits (QLoRA, arXiv:2305.14314).

    transformers reads, casts and quantizes one matrix at a time, so neither the device nor the
    host ever holds the whole unquantized model.

    Returns:
        The quantized model with its tokenizer; from a multimodal checkpoint only the language
        model. Its provenance lists the checksums of every source file and the memory used
        (10⁹ bytes).

    Raises:
        InputError: The source is quantized already, its tokenizer has ids without a row in the
            embedding, or a weight is not finite in ``load_dtype``.
    """
    refuse_quantized(base_model)
    config = base_model.load_config()
    check_tokenizer(base_model.path, config, base_model.remedy)
    files = base_model.checksums("quantization: hashing the source")
    model, memory_gb = load_in_4_bits(base_model, parameters)
    tokenizer = base_model.load_tokenizer()
    _log_other_end(base_model, tokenizer)
    added_template = bool(parameters.chat_template) and not tokenizer.chat_template
    if added_template:
        tokenizer.chat_template = parameters.chat_template
    provenance = {
        "stage": "quantization",
        "parameters": model.num_parameters(),
        "source": {
            "model_id": base_model.model_id,
            "revision": base_model.revision,
            "model_type": config.get("model_type"),
            **mark_multimodal(config),
            "provenance": base_model.provenance,
            "files": files,
        },
        "settings": parameters.model_dump(exclude=_NOT_SETTINGS),
        "chat_template_added": added_template,
        "memory_gb": memory_gb,
        "versions": {
            "ja-instruct": __version__,
            **{name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        },
    }
    return ModelArtifact(model, tokenizer, provenance, quantized_card(provenance))


def _log_other_end(base_model: ModelDirectory, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = read_end_ids(base_model.path, base_model.remedy)
    eos: Any = tokenizer.eos_token_id
    if eos is not None and ends and eos not in ends:
        logger.warning(
            "%s: the model's files end answers with %s, the tokenizer with %s. Training ends "
            "answers as the tokenizer does, and inference ends at either",
            base_model.model_id,
            ", ".join(f"'{tokenizer.convert_ids_to_tokens(one)}' ({one})" for one in ends),
            f"'{tokenizer.eos_token}' ({eos})",
        )


@unaffected_by("params:quantization", but=("params:quantization.perplexity_max_tokens",))
@gpu_resources(estimate_measurement)
def measure_quantization(
    base_model: ModelDirectory,
    quantized_model: ModelDirectory,
    perplexity_texts: Dataset,
    parameters: QuantizationParameters,
) -> dict[str, Any]:
    """Compare the 4-bit model with its source: matrix by matrix, and by their predictions.

    Returns:
        ``quantization_report``: ``summary``; ``source`` and ``written`` with the SHA-256 and size
        of every file; ``settings``, ``versions``, ``chat_template_added``, ``memory_gb``;
        ``errors`` of every matrix; ``perplexity`` of both models. Sizes in the summary are those
        of the safetensors on disk, in 10⁶ bytes.

    Raises:
        InputError: ``quantized_model`` was not made from ``base_model``.
    """
    provenance = quantized_model.provenance
    _require_same_source(base_model, quantized_model)
    errors = summarize_errors(
        relative_errors(base_model.path, quantized_model.path, parameters.device)
    )
    perplexity = _compare_predictions(base_model, quantized_model, perplexity_texts, parameters)
    copied = ("source", "settings", "chat_template_added", "memory_gb", "versions")
    return {
        "summary": _summarize(provenance, errors, perplexity),
        **{key: provenance.get(key) for key in copied},
        "written": provenance["files"],
        "errors": errors,
        "perplexity": perplexity,
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
    """Compare names and sizes only: the content was hashed when it was quantized."""
    for name, record in quantized_model.provenance["source"]["files"].items():
        path = base_model.path / name
        if not path.is_file() or path.stat().st_size != record["bytes"]:
            raise InputError(
                f"{path}: not the {record['bytes']:,} bytes that {quantized_model.path} was made "
                f"of; run 'kedro run --pipeline=quantization' again, or point base_model at "
                f"'{quantized_model.model_id}', revision {quantized_model.revision}"
            )


def _weights_mb(files: dict[str, FileRecord]) -> float:
    weights = (record for name, record in files.items() if name.endswith(".safetensors"))
    return sum(record["bytes"] for record in weights) / 1e6


def _compare_predictions(
    base_model: ModelDirectory,
    quantized_model: ModelDirectory,
    texts: Dataset,
    parameters: QuantizationParameters,
) -> dict[str, Any]:
    """Return both models' perplexity; empty if ``perplexity_max_tokens`` is 0."""
    if not parameters.perplexity_max_tokens:
        return {}
    texts = as_dataset(texts, "perplexity_texts")
    require_columns(texts, ("text",), "perplexity_texts")
    tokenizer = base_model.load_tokenizer()
    samples = make_samples(tokenizer, list(texts["text"]), parameters.perplexity_max_tokens)
    if not samples:
        raise InputError(
            "'perplexity_texts' has no text to predict; add some, or set "
            "quantization.perplexity_max_tokens to 0"
        )
    # two functions, so that the base model is freed before the other one is loaded
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

    # the type that load_nf4_model uses for all weights that are not in 4 bits
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    streamed = StreamedModel(base_model, device, dtype)
    description = "quantization: perplexity of the base model"
    return score(streamed.model, samples, description, streamed.loaded)


def _score_quantized(
    quantized_model: ModelDirectory, samples: Sequence[Sample], device: Device
) -> Score:
    model = load_nf4_model(quantized_model, device)
    # only this implementation applies Gemma 2's attention soft cap
    model.set_attn_implementation("eager")
    return score(model.eval(), samples, "quantization: perplexity in 4 bits")
