"""Wiring of ``quantization``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.quantization.nodes import measure_quantization, quantize


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: base model in, 4-bit model and report out."""
    return pipeline(
        [
            node(
                quantize,
                inputs=["base_model", "params:quantization"],
                outputs="quantized_model",
                name="quantize",
            ),
            node(
                measure_quantization,
                inputs=["base_model", "quantized_model", "perplexity_texts", "params:quantization"],
                outputs="quantization_report",
                name="measure_quantization",
            ),
        ],
        tags=["quantization", "gpu"],
    )
