"""Typed parameters of ``inference``."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ja_instruct.devices import Device
from ja_instruct.parameters import GpuParameters, Parameters, check_devices


class InferenceParameters(Parameters):
    """How prompts are built and answers generated."""

    backend: Literal["unsloth", "transformers"]
    device: Device
    gpu: GpuParameters = Field(description="One device at most")
    top_k: int = Field(ge=0, description="Shots a task: the most similar pairs of the pool")
    max_query_tokens: int | None = Field(
        ge=1, description="Tokens of a task that the retriever reads; None: RAGatouille's choice"
    )
    max_seq_length: int = Field(gt=0, description="Prompt and answer together, in tokens")
    max_new_tokens: int = Field(gt=0)
    repetition_penalty: float = Field(gt=0, description="CTRL's penalty (arXiv:1909.05858)")
    bad_words: tuple[str, ...] = Field(description="Never generated")
    compare_tasks: int = Field(
        ge=0, description="Tasks that the base model answers too, without the adapter"
    )

    @model_validator(mode="after")
    def _backend_fits_device(self) -> Self:
        if self.backend == "unsloth" and self.device == "cpu":
            raise ValueError(
                "backend 'unsloth' needs device 'cuda'; on a CPU use backend 'transformers'"
            )
        return self

    @model_validator(mode="after")
    def _devices_can_be_used(self) -> Self:
        several = "answers are generated on one: more would only repeat the work"
        check_devices(self.gpu, self.device, refuse_several=several)
        return self

    @model_validator(mode="after")
    def _answer_fits(self) -> Self:
        if self.max_new_tokens >= self.max_seq_length:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) leaves no room for a prompt in "
                f"max_seq_length ({self.max_seq_length})"
            )
        return self
