"""Index of the few-shot pool's questions."""

from ja_instruct.pipelines.rag_index.pipeline import create_pipeline

__all__ = ["create_pipeline"]
