"""Typed parameters of ``export``."""

from typing import Literal

from pydantic import Field

from ja_instruct.config import Parameters


class ExportParameters(Parameters):
    """How the merged model is checked and converted."""

    check_inputs: int = Field(
        gt=0, description="Random inputs that every merged matrix is multiplied with in the check"
    )
    seed: int = Field(description="Draws these inputs")
    gguf_outtype: Literal["f32", "f16", "bf16", "q8_0"] = Field(
        description="Type of the weights in the GGUF file; float16 overflows in Gemma"
    )
