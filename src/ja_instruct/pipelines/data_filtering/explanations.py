"""What each rule looks for, in words, and where a person changes it."""

from __future__ import annotations

from typing import NamedTuple


class Explanation(NamedTuple):
    """A rule in words.

    Attributes:
        japanese: What it drops.
        english: The same.
        edited_in: Where it is made looser: parameters, or a word list.
        on_purpose: Whether it drops Japanese text on purpose. The other rules guard against a
            drift into another language, so a Japanese pair that they drop is lost.
        quotes: Whether what it reports as found stands in the pair itself.
    """

    japanese: str
    english: str
    edited_in: str = "data_filtering"
    on_purpose: bool = False
    quotes: bool = True


_UNKNOWN = Explanation("この規則の説明はまだありません", "no explanation of this rule yet")

_EXPLANATIONS = {
    "banned_substring": Explanation(
        "どちらかの側に禁止文字列を含む組",
        "either field holds a text of the banned list",
        "word_lists/banned_substrings.yml",
    ),
    "banned_instruction_substring": Explanation(
        "指示に、指示用の禁止文字列を含む組",
        "the instruction holds a text that is banned in instructions",
        "word_lists/banned_instruction_substrings.yml",
    ),
    "rare_character": Explanation(
        "コーパス全体で数回しか現れない文字を含む組",
        "a character that the whole corpus holds only a few times",
        "data_filtering.rare_char_count_max",
    ),
    "token_count": Explanation(
        "回答が短すぎる、または全体が長すぎる組（トークン数）",
        "too few tokens in the response, or too many in the pair",
        "data_filtering.pair_tokens_max, response_tokens_min",
        on_purpose=True,
        quotes=False,
    ),
    "citation_mark": Explanation(
        "百科事典などの出典記号（[1]、[要出典]）が残った組",
        "citation marks left over from an encyclopedia: [1], [citation needed]",
        "data_filtering.extra_rules",
        on_purpose=True,
    ),
    "cut_off": Explanation(
        "回答が途中で切れている組",
        "the response breaks off",
        "data_filtering.extra_rules",
        on_purpose=True,
    ),
    "repetition": Explanation(
        "同じ文や文字列を繰り返す組",
        "the same sentence or text again and again",
        "data_filtering.repeated_sentence_percent_max, repeated_ngram_percent_max",
        on_purpose=True,
    ),
    "kana_share": Explanation(
        "仮名のない漢字の並びが長く、中国語らしい組",
        "a long stretch of Han characters without kana, as in Chinese",
        "data_filtering.han_chars_without_kana_max, foreign_han_chars_without_kana_max",
    ),
    "contamination": Explanation(
        "評価用の課題と重なる組",
        "overlaps with a task of the evaluation",
        "data_filtering.contamination_ngram_chars, contamination_share_min",
        on_purpose=True,
        quotes=False,
    ),
    "language_undetectable": Explanation(
        "制御文字などがあり、CLD2 が言語を判定できない組",
        "CLD2 cannot read it, mostly for a control character",
        quotes=False,
    ),
    "language": Explanation(
        "どちらかの側を CLD2 が日本語と判定しない組（ごく短い文を含む）",
        "CLD2 does not find both fields Japanese; it finds no language in very short texts",
        "data_filtering.language_percent_min",
        quotes=False,
    ),
    "exact_duplicate": Explanation(
        "前の組と同じ組",
        "the same as an earlier pair",
        "data_filtering.extra_rules",
        on_purpose=True,
        quotes=False,
    ),
    "near_duplicate": Explanation(
        "前の組とほとんど同じ組",
        "nearly the same as an earlier pair",
        "data_filtering.near_duplicate_jaccard_min",
        on_purpose=True,
        quotes=False,
    ),
    "rare_survivor_character": Explanation(
        "ほかの規則を通った組の中で数回しか現れない文字を含む組",
        "a character that the pairs left by the other rules hold only a few times",
        "data_filtering.survivor_char_count_min",
    ),
}


def explain(rule: str) -> Explanation:
    """Return a rule in words; of a rule without any, that there are none.

    >>> explain("rare_character").edited_in
    'data_filtering.rare_char_count_max'
    """
    return _EXPLANATIONS.get(rule, _UNKNOWN)
