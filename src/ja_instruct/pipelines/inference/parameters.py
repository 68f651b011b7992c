"""Typed parameters of ``inference``."""

from pydantic import Field

from ja_instruct.engine.parameters import EngineParameters


class InferenceParameters(EngineParameters):
    """How prompts are built and answers generated."""

    top_k: int = Field(ge=0, description="Examples per task: the most similar pairs of the pool")
    max_query_tokens: int | None = Field(
        ge=1, description="Tokens of a task that the retriever reads; None: RAGatouille's choice"
    )
    exclude_same_task: bool = Field(
        description="Whether pairs that ask the same as the task are never examples"
    )
    example_diversity: float | None = Field(
        ge=0, le=1, description="Weight of dissimilarity among examples; None: the most similar"
    )
    fit_prompt: bool = Field(
        description="Whether to drop the least similar examples until max_seq_length is kept"
    )
    compare_tasks: int = Field(
        ge=0, description="Tasks that the base model answers too, without the adapter"
    )
    fail_on_failed_tasks: bool = Field(
        description="Whether a run ends with an error if tasks have no answer"
    )
    cut_off_is_failure: bool = Field(
        description="Whether an answer that max_new_tokens cuts off counts as failed"
    )
