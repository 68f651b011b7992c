"""Wiring of ``inference``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.inference.nodes import (
    answer_tasks,
    answer_with_base_model,
    build_prompts,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline from tasks, pool and model to answers."""
    return pipeline(
        [
            node(
                build_prompts,
                inputs=[
                    "tasks",
                    "few_shot_pool",
                    "retrieval_index",
                    "retriever_checkpoint",
                    "quantized_model",
                    "params:prompts",
                    "params:inference",
                ],
                outputs="prompts",
                name="build_prompts",
            ),
            node(
                answer_tasks,
                inputs=[
                    "prompts",
                    "answer_store",
                    "quantized_model",
                    "adapter",
                    "params:prompts",
                    "params:inference",
                ],
                outputs=["answers", "inference_report"],
                name="answer_tasks",
                tags="gpu",
            ),
            node(
                answer_with_base_model,
                inputs=[
                    "prompts",
                    "answer_store",
                    "quantized_model",
                    "params:prompts",
                    "params:inference",
                ],
                outputs="base_answers",
                name="answer_with_base_model",
                tags="gpu",
            ),
        ],
        tags="inference",
    )
