"""The typed parameters of the filter."""

import pycld2
from pydantic import Field, field_validator

from ja_instruct.parameters import Parameters


class DataFilteringParameters(Parameters):
    """Section ``data_filtering`` of the parameters."""

    rare_char_count_max: int = Field(
        ge=0,
        description=(
            "A character that the corpus holds this many times or fewer, counted before the "
            "replacements, is banned. 0 bans none."
        ),
    )
    survivor_char_count_min: int = Field(
        ge=0,
        description=(
            "A pair with a character that the pairs left by the other rules hold fewer times "
            "than this, counted after the replacements, is dropped. 0 and 1 drop none."
        ),
    )
    language: str = Field(
        description="CLD2 code of the language that both sides must be written in, such as 'ja'."
    )
    language_percent_min: int = Field(
        ge=0,
        le=100,
        description="Least share of each side, in percent of its text, in that language.",
    )

    bad_records_max: int = Field(
        ge=0,
        description=(
            "Records of the source that may be unreadable (no JSON, a value of another type); they "
            "are quarantined. One more stops the run."
        ),
    )

    @field_validator("language")
    @classmethod
    def _known_to_cld2(cls, code: str) -> str:
        if code not in {known for _, known in pycld2.LANGUAGES}:
            raise ValueError(
                f"CLD2 has no language '{code}', so no pair would be kept; "
                f"Japanese is 'ja', English 'en'"
            )
        return code
