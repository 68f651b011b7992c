"""The typed parameters of the filter."""

from typing import Literal

import pycld2
from pydantic import Field, field_validator

from ja_instruct.config import Parameters

FurtherRule = Literal[
    "token_count",
    "citation_mark",
    "cut_off",
    "repetition",
    "kana_share",
    "contamination",
    "exact_duplicate",
    "near_duplicate",
]


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
        description="CLD2 code of the language that both fields must be written in, such as 'ja'."
    )
    language_percent_min: int = Field(
        ge=0,
        le=100,
        description="Least share of each field, in percent of its text, in that language.",
    )

    bad_records_max: int = Field(
        ge=0,
        description=(
            "Records of the source that may be unreadable (no JSON, a value of another type); they "
            "are quarantined. One more stops the run."
        ),
    )

    extra_rules: tuple[FurtherRule, ...] = Field(
        description="Rules beyond the recipe, by their ids; those that need no figure have none."
    )
    response_tokens_min: int = Field(
        ge=0, description="Rule token_count: fewest tokens of a response."
    )
    pair_tokens_max: int = Field(
        ge=1, description="Rule token_count: most tokens of instruction and response together."
    )
    repeated_sentence_percent_max: int = Field(
        ge=0,
        le=100,
        description=(
            "Rule repetition: most of a text, in percent of its characters, in sentences that "
            "stood in it before."
        ),
    )
    repeated_ngram_percent_max: int = Field(
        ge=0,
        le=100,
        description=(
            "Rule repetition: most of a text's Japanese letters, in percent, in 10-grams that "
            "stood in it before."
        ),
    )
    repeated_ngram_letters_min: int = Field(
        ge=20,
        description=(
            "Rule repetition: fewest Japanese letters of a text whose 10-grams are looked at."
        ),
    )
    han_chars_without_kana_max: int = Field(
        ge=1, description="Rule kana_share: most Han characters in a stretch without kana."
    )
    foreign_han_chars_without_kana_max: int = Field(
        ge=1,
        description=(
            "Rule kana_share: the same for a stretch with two or more characters outside code "
            "page 932."
        ),
    )
    contamination_ngram_chars: int = Field(
        ge=10,
        description=(
            "Rule contamination: letters and digits in a row that a text may not share with an "
            "evaluation task."
        ),
    )
    contamination_share_min: float = Field(
        gt=0,
        le=1,
        description="Rule contamination: share of a task's 5-grams that a text may not hold.",
    )
    contamination_stock_texts_max: int = Field(
        ge=1,
        description=(
            "Rule contamination: what more texts than this share with a task is a stock phrase."
        ),
    )
    near_duplicate_jaccard_min: float = Field(
        ge=0.5,
        le=1,
        description=(
            "Rule near_duplicate: least Jaccard similarity, of the character 3-grams of both "
            "fields, to an earlier pair."
        ),
    )
    quality_scores: bool = Field(
        description="Whether the kept pairs get columns score_… for later use."
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
