"""Typed parameters of ``inference``."""

from pydantic import Field

from ja_instruct.engine.parameters import EngineParameters


class InferenceParameters(EngineParameters):
    """How prompts are built and answers generated."""

    top_k: int = Field(ge=0, description="Shots a task: the most similar pairs of the pool")
    max_query_tokens: int | None = Field(
        ge=1, description="Tokens of a task that the retriever reads; None: RAGatouille's choice"
    )
    exclude_same_task: bool = Field(description="No shot whose question is the task itself")
    example_diversity: float | None = Field(
        ge=0, le=1, description="Weight of unlikeness among the shots; None takes the most similar"
    )
    fit_prompt: bool = Field(
        description="Whether the least similar shots go until prompt and answer fit max_seq_length"
    )
    compare_tasks: int = Field(
        ge=0, description="Tasks that the base model answers too, without the adapter"
    )
    fail_on_failed_tasks: bool = Field(
        description="Whether a run whose tasks are not all answered ends with an error"
    )
    cut_off_is_failure: bool = Field(
        description="Whether an answer of max_new_tokens that has no end counts as failed"
    )
