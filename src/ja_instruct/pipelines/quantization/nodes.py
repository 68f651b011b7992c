"""Nodes of ``quantization``."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any

from ja_instruct import __version__
from ja_instruct.gpu_need import needs_gpu
from ja_instruct.models import ModelArtifact, ModelDirectory, refuse_quantized
from ja_instruct.pipelines.quantization.gpu_need import estimate_quantization
from ja_instruct.pipelines.quantization.parameters import QuantizationParameters

logger = logging.getLogger(__name__)


@needs_gpu(estimate_quantization)
def quantize(
    base_model: ModelDirectory, parameters: QuantizationParameters
) -> tuple[ModelArtifact, dict[str, Any]]:
    """Quantize the linear layers of a 16-bit model to 4 bits (QLoRA, arXiv:2305.14314).

    Returns:
        The quantized model with its tokenizer, and ``quantization_report``: source, settings,
        sizes in MB and library versions.

    Raises:
        InputError: The source is quantized already, so that nobody could say by whom.
    """
    import torch
    from transformers import BitsAndBytesConfig

    refuse_quantized(base_model)
    model = base_model.load_model(
        device_map={"": 0} if parameters.device == "cuda" else "cpu",
        dtype=getattr(torch, parameters.compute_dtype),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=parameters.quant_type,
            bnb_4bit_use_double_quant=parameters.double_quantization,
            bnb_4bit_compute_dtype=getattr(torch, parameters.compute_dtype),
        ),
    )
    tokenizer = base_model.load_tokenizer()
    added_template = bool(parameters.chat_template) and not tokenizer.chat_template
    if added_template:
        tokenizer.chat_template = parameters.chat_template

    source_mb = sum(path.stat().st_size for path in base_model.path.glob("*.safetensors")) / 1e6
    memory_mb = model.get_memory_footprint() / 1e6
    n_parameters = model.num_parameters()
    report = {
        "summary": {
            "parameters_millions": round(n_parameters / 1e6, 1),
            "source_mb": round(source_mb, 1),
            "quantized_mb": round(memory_mb, 1),
            "quantized_percent": round(100 * memory_mb / max(source_mb, 1e-9), 1),
        },
        "source": {
            "model_id": base_model.model_id,
            "revision": base_model.revision,
            "model_type": base_model.load_config().get("model_type"),
            "provenance": base_model.provenance,
        },
        "settings": parameters.model_dump(exclude={"chat_template", "gpu"}),
        "chat_template_added": added_template,
        "versions": {
            "ja-instruct": __version__,
            **{name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        },
    }
    provenance = {
        "stage": "quantization",
        "parameters": n_parameters,
        **{key: report[key] for key in ("source", "settings", "versions")},
    }
    return ModelArtifact(model, tokenizer, provenance), report
