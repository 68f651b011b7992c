"""Typed parameters of ``gguf_export``."""

from typing import Literal

from pydantic import Field

from ja_instruct.config import Parameters


class ExportParameters(Parameters):
    """How the merged model is converted."""

    gguf_outtype: Literal["f32", "f16", "bf16", "q8_0"] = Field(
        description="Type of the weights in the GGUF file; float16 overflows in Gemma"
    )
