"""Every stage's report to ``run_report``, one HTML page."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from ja_instruct.pipelines.reporting.nodes import build_run_report


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Wire the report."""
    return Pipeline(
        [
            Node(
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
