"""One page about a run: what each stage did, and how the answers changed."""

from ja_instruct.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
