"""Reporting: one page on what a run did and what changed by it."""

from ja_instruct.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
