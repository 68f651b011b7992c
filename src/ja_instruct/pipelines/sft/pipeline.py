"""Wiring of ``sft``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.sft.nodes import build_datasets, plot_loss, train


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline from pairs and 4-bit model to adapter and metrics."""
    return pipeline(
        [
            node(
                build_datasets,
                inputs=[
                    "filtered_pairs",
                    "qa_pairs",
                    "quantized_model",
                    "params:prompts",
                    "params:sft",
                ],
                outputs=["train_dataset", "eval_dataset"],
                name="build_datasets",
            ),
            node(
                train,
                inputs=["quantized_model", "train_dataset", "eval_dataset", "params:sft"],
                outputs=["adapter", "train_metrics", "train_history"],
                name="train",
                tags="gpu",
            ),
            node(plot_loss, inputs="train_history", outputs="loss_plot", name="plot_loss"),
        ],
        tags="sft",
    )
