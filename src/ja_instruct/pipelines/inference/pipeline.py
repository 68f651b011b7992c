"""Wiring of ``inference``."""

from typing import Any

from kedro.pipeline import Pipeline, node, pipeline

from ja_instruct.pipelines.inference.nodes import (
    answer_tasks,
    answer_with_base_model,
    build_prompts,
    require_all_answered,
)


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Return the pipeline: tasks, pool and model in, answers out."""
    return pipeline(
        [
            node(
                build_prompts,
                inputs=[
                    "tasks",
                    "qa_pairs",
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
            # of the nodes that take both kinds of answers it is the last by its name: everything is
            # saved when it fails
            node(
                require_all_answered,
                inputs=["answers", "base_answers", "inference_report", "params:inference"],
                outputs=None,
                name="require_all_answered",
            ),
        ],
        tags="inference",
    )
