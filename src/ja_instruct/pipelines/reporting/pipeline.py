"""Wiring of ``reporting``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.reporting.nodes import build_run_report


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: every stage's report in, one HTML page out."""
    return pipeline(
        [
            node(
                build_run_report,
                inputs=[
                    "filter_report",
                    "quantization_report",
                    "train_metrics",
                    "loss_plot",
                    "rag_index_report",
                    "inference_report",
                    "tasks",
                    "base_answers",
                    "answers",
                ],
                outputs="run_report",
                name="build_run_report",
            ),
        ],
        tags="reporting",
    )
