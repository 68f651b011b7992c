"""Quantization: a base model to a 4-bit NF4 directory."""

from ja_instruct.pipelines.quantization.pipeline import create_pipeline

__all__ = ["create_pipeline"]
