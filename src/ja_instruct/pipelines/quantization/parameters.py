"""Typed parameters of ``quantization``."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ja_instruct.config import GpuParameters, Parameters, check_devices
from ja_instruct.models.loading import Device


class QuantizationParameters(Parameters):
    """How the base model becomes a 4-bit model."""

    device: Device = Field(description="Device that quantizes the weights")
    gpu: GpuParameters = Field(description="At most one device")
    quant_type: Literal["nf4", "fp4"] = Field(description="4-bit data type (QLoRA: nf4)")
    double_quantization: bool = Field(description="Quantize the quantization constants too")
    load_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        description="Type the weights are read in, from which they are quantized"
    )
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        description="Type the matrices compute in; the other weights are saved in it"
    )
    chat_template: str = Field(
        description="Jinja chat template for a tokenizer that has none; empty adds none"
    )
    perplexity_max_tokens: int = Field(
        ge=0, description="Tokens predicted of perplexity_texts in total; 0 measures none"
    )

    @field_validator("chat_template")
    @classmethod
    def _is_jinja(cls, template: str) -> str:
        from jinja2 import Environment, TemplateSyntaxError

        # transformers' own tag, which marks the model's turns
        plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)
        try:
            Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(plain)
        except TemplateSyntaxError as error:
            raise ValueError(f"is not a Jinja template: line {error.lineno}: {error}") from error
        return template

    @model_validator(mode="after")
    def _devices_can_be_used(self) -> Self:
        several = "a model is quantized on one device: more would only repeat the work"
        check_devices(self.gpu, self.device, refuse_several=several)
        return self
