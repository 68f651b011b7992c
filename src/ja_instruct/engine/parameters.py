"""Settings of the generation engine."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ja_instruct.config import GpuParameters, Parameters, check_devices
from ja_instruct.models.loading import Device


class BatchingParameters(Parameters):
    """How many prompts are answered at the same time, and how; see ``batched.Batched``."""

    max_num_seqs: int | None = Field(
        ge=1, description="Prompts answered at the same time; None: as many as memory holds"
    )
    weights: Literal["auto", "nf4", "bf16"] = Field(
        description=(
            "On CUDA. bf16: the 4-bit weights dequantized and the adapter merged; nf4: in 4 bits, "
            "the adapter beside them; auto: bf16 where prompts take no more rounds with them"
        )
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        description=(
            "int8: keys and values in 8 bits, half the memory and half of what a step reads of "
            "them, at some loss; auto: in the model's own type"
        )
    )
    memory_gb: float | None = Field(
        gt=0,
        description=(
            "What weights, cache and working memory may take of the GPU, in 10⁹ bytes; None: "
            "gpu.memory_gb, and if that is None, too, all that is free"
        ),
    )
    prefill_chunk_size: int | None = Field(
        ge=1,
        description="Tokens of a prompt that are read at once; None: up to 4,096, if memory allows",
    )
    cuda_graphs: bool = Field(description="Whether a step is recorded once and then replayed")

    @property
    def has_int8_cache(self) -> bool:
        """Whether keys and values are kept in 8 bits."""
        return self.kv_cache_dtype == "int8"


class EngineParameters(Parameters):
    """How answers are generated."""

    backend: Literal["unsloth", "transformers", "vllm"]
    engine: Literal["batched", "one_by_one"] = Field(
        description="one_by_one: each prompt with the backend's own generate, as the recipe does"
    )
    batching: BatchingParameters
    device: Device
    gpu: GpuParameters = Field(description="One device at most")
    max_seq_length: int = Field(gt=0, description="Prompt and answer together, in tokens")
    max_new_tokens: int = Field(gt=0)
    repetition_penalty: float = Field(gt=0, description="CTRL's penalty (arXiv:1909.05858)")
    penalty_on: Literal["prompt_and_answer", "answer"] = Field(
        description="The tokens that the penalty discourages from coming again"
    )
    penalty_spares_end: bool = Field(
        description="Whether what ends an answer or a turn is exempt from the penalty"
    )
    bad_words: tuple[str, ...] = Field(description="Never generated")
    bad_words_in: Literal["tokens", "text"] = Field(
        description=(
            "tokens: the ids that the tokenizer makes of a bad word are not generated, others that "
            "spell it are; text: the answer's text never holds it"
        )
    )

    @model_validator(mode="after")
    def _backend_fits_device(self) -> Self:
        if self.backend in ("unsloth", "vllm") and self.device == "cpu":
            raise ValueError(
                f"backend '{self.backend}' needs device 'cuda'; on a CPU use backend 'transformers'"
            )
        return self

    @model_validator(mode="after")
    def _engine_fits_backend(self) -> Self:
        if self.backend == "unsloth" and self.engine != "one_by_one":
            raise ValueError(
                f"backend 'unsloth' answers one prompt after the other, so it cannot be used with "
                f"engine '{self.engine}'; set engine: one_by_one, or backend: transformers"
            )
        if self.backend == "vllm" and self.engine != "batched":
            raise ValueError(
                f"backend 'vllm' answers prompts side by side, so it cannot be used with engine "
                f"'{self.engine}'; set engine: batched, or backend: transformers"
            )
        if self.engine == "one_by_one" and self.batching.has_int8_cache:
            raise ValueError(
                "engine 'one_by_one' keeps keys and values in the model's own type, so "
                "batching.kv_cache_dtype 'int8' would do nothing; set engine: batched with "
                "backend: transformers, or batching.kv_cache_dtype: auto"
            )
        return self

    @model_validator(mode="after")
    def _backend_can_decode(self) -> Self:
        if self.backend != "vllm":
            return self
        refused = {
            "penalty_on: answer": self.penalty_on == "answer",
            "penalty_spares_end: true": self.penalty_spares_end,
            "bad_words_in: text": bool(self.bad_words) and self.bad_words_in == "text",
            "batching.weights: bf16": self.batching.weights == "bf16",
            "batching.kv_cache_dtype: int8": self.batching.has_int8_cache,
        }
        found = [setting for setting, is_set in refused.items() if is_set]
        if found:
            raise ValueError(
                f"backend 'vllm' cannot do {', '.join(found)}; change that, or set backend: "
                f"transformers"
            )
        return self

    @model_validator(mode="after")
    def _devices_can_be_used(self) -> Self:
        several = "answers are generated on one: more would only repeat the work"
        check_devices(self.gpu, self.device, refuse_several=several)
        return self

    @model_validator(mode="after")
    def _bad_words_are_not_empty(self) -> Self:
        if not all(self.bad_words):
            raise ValueError("bad_words holds an empty one, which every answer would hold")
        return self

    @model_validator(mode="after")
    def _answer_fits(self) -> Self:
        if self.max_new_tokens >= self.max_seq_length:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) leaves no room for a prompt in "
                f"max_seq_length ({self.max_seq_length})"
            )
        return self
