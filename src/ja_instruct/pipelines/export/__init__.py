"""Export: the adapter merged into the 16-bit base, and that as a GGUF file."""

from ja_instruct.pipelines.export.pipeline import create_gguf_pipeline, create_pipeline

__all__ = ["create_gguf_pipeline", "create_pipeline"]
