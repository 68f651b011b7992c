"""Inference: retrieved few-shot prompts in, answers out."""

from ja_instruct.pipelines.inference.pipeline import create_pipeline

__all__ = ["create_pipeline"]
