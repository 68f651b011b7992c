"""Wiring of ``quantization``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.quantization.nodes import quantize


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: base model in, 4-bit model and report out."""
    return pipeline(
        [
            node(
                quantize,
                inputs=["base_model", "params:quantization"],
                outputs=["quantized_model", "quantization_report"],
                name="quantize",
            ),
        ],
        tags=["quantization", "gpu"],
    )
