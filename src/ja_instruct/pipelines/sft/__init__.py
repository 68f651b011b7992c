"""Supervised fine-tuning: a LoRA adapter on the quantized model (QLoRA)."""

from ja_instruct.pipelines.sft.pipeline import create_pipeline

__all__ = ["create_pipeline"]
