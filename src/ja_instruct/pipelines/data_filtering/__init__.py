"""Pairs of instruction and response out of conversations, and only the clean ones."""

from ja_instruct.pipelines.data_filtering.pipeline import create_pipeline

__all__ = ["create_pipeline"]
