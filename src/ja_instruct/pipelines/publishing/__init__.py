"""Publishing: quantized model, adapter and merged model to the Hugging Face hub."""

from ja_instruct.pipelines.publishing.pipeline import create_pipeline

__all__ = ["create_pipeline"]
