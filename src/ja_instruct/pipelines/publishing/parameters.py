"""Typed parameters of ``publishing``."""

from pydantic import Field

from ja_instruct.config import Parameters


class PublishingParameters(Parameters):
    """How models are published; the catalog names the repositories."""

    commit_message: str = Field(min_length=1, description="Message of the commits on the hub")
