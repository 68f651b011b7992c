"""Typed parameters of ``publishing``."""

from pydantic import Field

from ja_instruct.config import Parameters


class PublishingParameters(Parameters):
    """How models are published; where to is said in the catalog."""

    commit_message: str = Field(min_length=1, description="Of the commits on the hub")
