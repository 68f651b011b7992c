"""Wiring of ``publishing``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.publishing.nodes import (
    publish_adapter,
    publish_merged_model,
    publish_quantized_model,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: finished models in, records of their publication out."""
    return pipeline(
        [
            node(
                publish_quantized_model,
                inputs=["quantized_model", "params:publishing"],
                outputs="published_quantized_model",
                name="publish_quantized_model",
            ),
            node(
                publish_adapter,
                inputs=["adapter", "params:publishing"],
                outputs="published_adapter",
                name="publish_adapter",
            ),
            node(
                publish_merged_model,
                inputs=["merged_model", "export_report", "params:publishing"],
                outputs="published_merged_model",
                name="publish_merged_model",
            ),
        ],
        tags="publishing",
    )
