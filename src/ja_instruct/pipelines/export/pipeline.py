"""Wiring of ``export``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.export.nodes import check_merged_model, export_gguf, merge_adapter


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: 16-bit base and adapter in, merged model and report out."""
    return pipeline(
        [
            node(
                merge_adapter,
                inputs=["base_model", "adapter", "params:prompts"],
                outputs="merged_model",
                name="merge_adapter",
            ),
            node(
                check_merged_model,
                inputs=["base_model", "adapter", "merged_model"],
                outputs="export_report",
                name="check_merged_model",
            ),
        ],
        tags="export",
    )


def create_gguf_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: merged model and llama.cpp's converter in, GGUF file out."""
    return pipeline(
        [
            node(
                export_gguf,
                inputs=["merged_model", "gguf_converter", "params:export"],
                outputs="gguf_model",
                name="export_gguf",
            ),
        ],
        tags="gguf_export",
    )
