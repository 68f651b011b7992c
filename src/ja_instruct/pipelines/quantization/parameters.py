"""Typed parameters of ``quantization``."""

from typing import Literal

from pydantic import Field

from ja_instruct.devices import Device
from ja_instruct.parameters import Parameters


class QuantizationParameters(Parameters):
    """How the base model becomes a 4-bit model."""

    device: Device = Field(description="Where the weights are quantized")
    quant_type: Literal["nf4", "fp4"] = Field(description="4-bit data type (QLoRA: nf4)")
    double_quantization: bool = Field(description="Quantize the quantization constants too")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        description="Type the layers compute in after dequantization"
    )
    chat_template: str = Field(
        description="Jinja chat template for a tokenizer that has none; empty adds none"
    )
