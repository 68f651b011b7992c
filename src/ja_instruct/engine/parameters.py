"""Settings of the generation engine."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ja_instruct.config import GpuParameters, Parameters, check_devices
from ja_instruct.memory.estimates import CONTEXT_BYTES
from ja_instruct.models.loading import Device


class BatchingParameters(Parameters):
    """How many prompts are answered at the same time, and how; see ``batched.Batched``."""

    max_num_seqs: int | None = Field(
        default=None, ge=1, description="Batch size; None: as many sequences as memory holds"
    )
    weights: Literal["auto", "nf4", "bf16"] = Field(
        default="auto",
        description=(
            "On CUDA. bf16: dequantized weights with the adapter merged; nf4: 4-bit weights with "
            "the adapter unmerged; auto: bf16 if that does not increase the number of batches"
        ),
    )
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        default="auto",
        description=(
            "int8: int8 KV cache, half the memory and half the reads per step, at some loss of "
            "accuracy; auto: the model's dtype"
        ),
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description=(
            "GPU memory for weights, cache and activations, in 10⁹ bytes; None: gpu.memory_gb, or "
            "all free memory if that is None too"
        ),
    )
    prefill_chunk_size: int | None = Field(
        default=None,
        ge=1,
        description="Prompt tokens per forward pass; None: up to 4,096, if memory allows",
    )
    cuda_graphs: bool = Field(
        default=True, description="Whether to capture a decoding step once and replay it"
    )

    @property
    def has_int8_cache(self) -> bool:
        """Whether the KV cache is int8."""
        return self.kv_cache_dtype == "int8"


class EngineParameters(Parameters):
    """What to generate with and how to decode; the defaults are plain greedy decoding.

    These are the user's settings, where None leaves a choice to the engine. ``Batched`` derives
    from them and from the free memory the sizes that it gives ``Engine``.
    """

    backend: Literal["unsloth", "transformers", "vllm"] = "transformers"
    engine: Literal["batched", "one_by_one"] = Field(
        default="batched",
        description="one_by_one: each prompt with the backend's own generate, as in the recipe",
    )
    batching: BatchingParameters = BatchingParameters()
    device: Device = "cuda"
    gpu: GpuParameters = Field(
        default=GpuParameters(devices=None, memory_gb=None, disk_gb=None),
        description="At most one device",
    )
    max_seq_length: int = Field(default=4096, gt=0, description="Prompt and answer, in tokens")
    max_new_tokens: int = Field(default=1024, gt=0)
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="CTRL's penalty (arXiv:1909.05858); 1 disables it"
    )
    penalty_on: Literal["prompt_and_answer", "answer"] = Field(
        default="prompt_and_answer", description="The tokens whose repetition is penalized"
    )
    penalty_spares_end: bool = Field(
        default=False,
        description="Whether tokens that end an answer or a turn are exempt from the penalty",
    )
    bad_words: tuple[str, ...] = Field(default=(), description="Never generated")
    bad_words_in: Literal["tokens", "text"] = Field(
        default="tokens",
        description=(
            "tokens: bans the token ids of each bad word, but not other ids that spell it; text: "
            "no answer contains a bad word, however it is tokenized"
        ),
    )

    @property
    def memory_limit_gb(self) -> float | None:
        """GPU memory for weights, cache and activations in 10⁹ bytes; None: no limit."""
        if self.batching.memory_gb is None and self.gpu.memory_gb is not None:
            return self.gpu.memory_gb - CONTEXT_BYTES / 1e9
        return self.batching.memory_gb

    @model_validator(mode="after")
    def _backend_fits_device_and_engine(self) -> Self:
        if self.backend in ("unsloth", "vllm") and self.device == "cpu":
            raise ValueError(
                f"backend '{self.backend}' needs device 'cuda'; on a CPU use backend 'transformers'"
            )
        if self.backend == "unsloth" and self.engine != "one_by_one":
            raise ValueError(
                f"backend 'unsloth' answers one prompt at a time, so it cannot be used with "
                f"engine '{self.engine}'; set engine: one_by_one, or backend: transformers"
            )
        if self.backend == "vllm" and self.engine != "batched":
            raise ValueError(
                f"backend 'vllm' answers prompts in batches, so it cannot be used with engine "
                f"'{self.engine}'; set engine: batched, or backend: transformers"
            )
        if self.engine == "one_by_one" and self.batching.has_int8_cache:
            raise ValueError(
                "engine 'one_by_one' keeps its KV cache in the model's dtype, so "
                "batching.kv_cache_dtype 'int8' would have no effect; set engine: batched with "
                "backend: transformers, or batching.kv_cache_dtype: auto"
            )
        return self

    @model_validator(mode="after")
    def _backend_supports_decoding(self) -> Self:
        if self.backend != "vllm":
            return self
        unsupported = {
            "penalty_on: answer": self.penalty_on == "answer",
            "penalty_spares_end: true": self.penalty_spares_end,
            "bad_words_in: text": bool(self.bad_words) and self.bad_words_in == "text",
            "batching.weights: bf16": self.batching.weights == "bf16",
            "batching.kv_cache_dtype: int8": self.batching.has_int8_cache,
        }
        found = [setting for setting, is_set in unsupported.items() if is_set]
        if found:
            raise ValueError(
                f"backend 'vllm' does not support {', '.join(found)}; change that, or set backend: "
                f"transformers"
            )
        return self

    @model_validator(mode="after")
    def _devices_can_be_used(self) -> Self:
        several = "answers are generated on one: more would only repeat the work"
        check_devices(self.gpu, self.device, refuse_several=several)
        return self

    @model_validator(mode="after")
    def _answers_are_possible(self) -> Self:
        if not all(self.bad_words):
            raise ValueError("bad_words must not contain an empty string")
        if self.max_new_tokens >= self.max_seq_length:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) leaves no room for a prompt in "
                f"max_seq_length ({self.max_seq_length})"
            )
        return self
