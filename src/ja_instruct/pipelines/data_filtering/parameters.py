"""The typed parameters of the filter."""

from typing import Literal

import pycld2
from pydantic import Field, field_validator

from ja_instruct.config import Parameters

ExtraRule = Literal[
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

    multi_turn: Literal["first", "last", "all", "split"] = Field(
        description=(
            "Records of a conversation with several exchanges: a pair of its 'first' user and "
            "assistant turn, as in the recipe; its 'last' exchange; 'all', the last exchange with "
            "the turns before it as history; 'split', one for every exchange."
        )
    )
    system_turns: Literal["drop", "keep"] = Field(
        description="Keep the system turns at the beginning as the first entry of history."
    )
    assistant_first: Literal["pair", "skip", "reject"] = Field(
        description=(
            "An assistant turn before the first user turn: with multi_turn 'first', 'pair' makes "
            "it the response, as in the recipe; 'skip' leaves it out; 'reject' drops the record."
        )
    )
    rare_char_count_max: int = Field(
        ge=0,
        description=(
            "A character that occurs at most this many times in the corpus, counted before the "
            "replacements, is banned. 0 bans none."
        ),
    )
    survivor_char_count_min: int = Field(
        ge=0,
        description=(
            "A pair is dropped if it contains a character that occurs fewer times than this in the "
            "pairs left by the other rules, counted after the replacements. 0 and 1 drop none."
        ),
    )
    language: str = Field(
        description="CLD2 code of the language that both fields must be written in, such as 'ja'."
    )
    language_percent_min: int = Field(
        ge=0, le=100, description="Least share of that language in each field, in percent."
    )
    bad_records_max: int = Field(
        ge=0, description="Most unreadable records, which are quarantined; more stop the run."
    )
    extra_rules: tuple[ExtraRule, ...] = Field(description="Ids of the rules beyond the recipe.")
    response_tokens_min: int = Field(
        ge=0, description="Rule token_count: fewest tokens of a response."
    )
    pair_tokens_max: int = Field(
        ge=1, description="Rule token_count: most tokens of instruction and response together."
    )
    repeated_sentence_percent_max: int = Field(
        ge=0,
        le=100,
        description="Rule repetition: most characters in repeated sentences, in percent.",
    )
    repeated_ngram_percent_max: int = Field(
        ge=0,
        le=100,
        description="Rule repetition: most Japanese letters in repeated 10-grams, in percent.",
    )
    repeated_ngram_letters_min: int = Field(
        ge=20,
        description="Rule repetition: fewest Japanese letters of a text to check its 10-grams.",
    )
    han_chars_without_kana_max: int = Field(
        ge=1, description="Rule kana_share: most Han characters in a run without kana."
    )
    foreign_han_chars_without_kana_max: int = Field(
        ge=1, description="Rule kana_share: the same with two characters outside code page 932."
    )
    contamination_ngram_chars: int = Field(
        ge=10,
        description="Rule contamination: letters and digits of an n-gram shared with a task.",
    )
    contamination_share_min: float = Field(
        gt=0, le=1, description="Rule contamination: least share of a task's 5-grams in a text."
    )
    contamination_stock_texts_max: int = Field(
        ge=1, description="Rule contamination: an n-gram in more texts is a stock phrase."
    )
    near_duplicate_jaccard_min: float = Field(
        ge=0.5,
        le=1,
        description="Rule near_duplicate: least Jaccard similarity of both fields' 3-grams.",
    )

    @property
    def keeps_history(self) -> bool:
        """Whether records have turns before the instruction."""
        return self.multi_turn == "all" or self.system_turns == "keep"

    @field_validator("language")
    @classmethod
    def _known_to_cld2(cls, code: str) -> str:
        if code not in {known for _, known in pycld2.LANGUAGES}:
            raise ValueError(
                f"CLD2 has no language '{code}', so no pair would be kept; "
                f"Japanese is 'ja', English 'en'"
            )
        return code
