"""``few_shot_pool`` to ``retrieval_index`` and ``rag_index_report``."""

from typing import Any

from kedro.pipeline import Node, Pipeline

from ja_instruct.pipelines.rag_index import nodes


def create_pipeline(**kwargs: Any) -> Pipeline:
    """Wire the index."""
    return Pipeline(
        [
            Node(
                nodes.encode_pool,
                inputs=[
                    "few_shot_pool",
                    "retriever_checkpoint",
                    "params:rag_index",
                    "encoding_cache",
                ],
                outputs=["retrieval_index", "rag_index_report"],
                name="encode_pool",
            )
        ],
        tags="rag_index",
    )
