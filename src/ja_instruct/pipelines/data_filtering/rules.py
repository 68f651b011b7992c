"""The rules of the filter: each keeps a pair (``None``) or gives the reason against it.

The texts that a rule sees are those after the replacements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pycld2

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


#: The id of every rule, in the order in which they are asked.
RULES = (
    "banned_substring",
    "banned_instruction_substring",
    "rare_character",
    "language_undetectable",
    "language",
    "rare_survivor_character",
)


class Pair(NamedTuple):
    """The two sides of a conversation that are trained on."""

    instruction: str
    response: str


class Rejection(NamedTuple):
    """Why a pair is dropped: the stable id of the rule, and what it found where."""

    rule: str
    detail: str


class Replacement(NamedTuple):
    """One line of the replacement table."""

    find: str
    replace: str


class WordLists(NamedTuple):
    """The checked word lists."""

    replacements: tuple[Replacement, ...]
    banned: tuple[str, ...]
    banned_in_instruction: tuple[str, ...]


def banned_substring(pair: Pair, banned: Sequence[str]) -> Rejection | None:
    """Reject a pair with a banned substring in either side.

    >>> banned = ["翻訳", "https://"]
    >>> banned_substring(Pair("日本の首都はどこですか。", "東京です。"), banned)
    >>> banned_substring(Pair("次の文を翻訳してください。", "はい。"), banned)
    Rejection(rule='banned_substring', detail='翻訳 (instruction)')
    """
    for side, text in zip(Pair._fields, pair, strict=True):
        for substring in banned:
            if substring in text:
                return Rejection("banned_substring", f"{substring} ({side})")
    return None


def banned_instruction_substring(pair: Pair, banned: Sequence[str]) -> Rejection | None:
    """Reject a pair with a banned substring in its instruction; the response may hold it.

    >>> banned = ["要約"]
    >>> banned_instruction_substring(Pair("読書のコツは。", "要約を書くことです。"), banned)
    >>> banned_instruction_substring(Pair("次の文を要約して。", "東京です。"), banned)
    Rejection(rule='banned_instruction_substring', detail='要約 (instruction)')
    """
    for substring in banned:
        if substring in pair.instruction:
            return Rejection("banned_instruction_substring", f"{substring} (instruction)")
    return None


def rare_character(pair: Pair, characters: Collection[str]) -> Rejection | None:
    """Reject a pair with one of ``characters``, which the whole corpus hardly ever holds.

    >>> rare_character(Pair("見頃はいつですか。", "四月です。"), {"㌍"})
    >>> rare_character(Pair("見頃はいつですか。", "四㌍月です。"), {"㌍"})
    Rejection(rule='rare_character', detail='㌍ U+330D (response)')
    """
    return _reject_characters("rare_character", pair, characters)


def rare_survivor_character(pair: Pair, characters: Collection[str]) -> Rejection | None:
    """Reject a pair with one of ``characters``, which the pairs left over hardly ever hold.

    >>> rare_survivor_character(Pair("好きな色は。", "青です。"), {"碧"})
    >>> rare_survivor_character(Pair("碧とは何色ですか。", "青緑です。"), {"碧"})
    Rejection(rule='rare_survivor_character', detail='碧 U+78A7 (instruction)')
    """
    return _reject_characters("rare_survivor_character", pair, characters)


def _reject_characters(rule: str, pair: Pair, characters: Collection[str]) -> Rejection | None:
    for side, text in zip(Pair._fields, pair, strict=True):
        for character in text:
            if character in characters:
                return Rejection(rule, f"{character} U+{ord(character):04X} ({side})")
    return None


def language(pair: Pair, code: str, percent_min: int) -> Rejection | None:
    r"""Reject a pair unless CLD2 finds each side to be ``percent_min`` % or more ``code``.

    The texts are read as CLD2 does by default, as HTML. It fails on control characters and
    noncharacters: such a pair, ``language_undetectable``, cannot be judged. It finds no language
    in an empty or very short side.

    >>> question = "日本の首都はどこですか。"
    >>> language(Pair(question, "首都は東京です。"), "ja", 60)
    >>> language(Pair(question, "It is Tokyo, the largest city there."), "ja", 60)
    Rejection(rule='language', detail='en 97 % (response)')
    >>> language(Pair(question, ""), "ja", 60)
    Rejection(rule='language', detail='none (response)')
    >>> language(Pair(question, "首都は東京\x01です。"), "ja", 60).rule
    'language_undetectable'
    """
    rejection = None
    for side, text in zip(Pair._fields, pair, strict=True):
        try:
            found = pycld2.detect(text)[2]
        except (pycld2.error, UnicodeEncodeError) as error:
            return Rejection("language_undetectable", f"{error} ({side})")
        accepted = any(name == code and percent >= percent_min for _, name, percent, _ in found)
        if rejection is None and not accepted:
            shares = ", ".join(f"{name} {percent} %" for _, name, percent, _ in found if percent)
            rejection = Rejection("language", f"{shares or 'none'} ({side})")
    return rejection


def read_word_lists(
    replacements: object, banned: object, banned_in_instruction: object
) -> WordLists:
    """Check the word lists as they come from their files.

    >>> table = [{"find": "よしmitsu", "replace": "よしみつ"}]
    >>> read_word_lists(table, ["翻訳"], []).replacements
    (Replacement(find='よしmitsu', replace='よしみつ'),)
    >>> read_word_lists(table, ["翻訳", ""], [])
    Traceback (most recent call last):
        ...
    ja_instruct.errors.InputError: 'banned_substrings', entry 2 is empty: ...

    Raises:
        InputError: When a list or an entry has another shape, or an entry is empty or doubled.
    """
    return WordLists(
        _read_replacements(replacements),
        _read_substrings(banned, "banned_substrings"),
        _read_substrings(banned_in_instruction, "banned_instruction_substrings"),
    )


def _read_substrings(entries: object, name: str) -> tuple[str, ...]:
    substrings: list[str] = []
    for number, entry in enumerate(_read_list(entries, name), start=1):
        if not isinstance(entry, str):
            raise InputError(f"'{name}', entry {number} is {entry!r}, not a text: put it in quotes")
        if not entry:
            raise InputError(
                f"'{name}', entry {number} is empty: every text contains it, so every pair would "
                f"be dropped. Remove the entry"
            )
        substrings.append(entry)
    _refuse_doubles(substrings, name)
    return tuple(substrings)


def _read_replacements(entries: object) -> tuple[Replacement, ...]:
    name = "replacements"
    table: list[Replacement] = []
    for number, entry in enumerate(_read_list(entries, name), start=1):
        if not isinstance(entry, dict) or set(entry) != {"find", "replace"}:
            raise InputError(
                f"'{name}', entry {number} is {entry!r}: write a mapping with the keys 'find' and "
                f"'replace'"
            )
        if not isinstance(entry["find"], str) or not isinstance(entry["replace"], str):
            raise InputError(
                f"'{name}', entry {number} is {entry!r}: put both texts in quotes ('' removes)"
            )
        if not entry["find"]:
            raise InputError(
                f"'{name}', entry {number} has an empty 'find', which would put "
                f"{entry['replace']!r} between all characters. Fill it or remove the entry"
            )
        table.append(Replacement(entry["find"], entry["replace"]))
    _refuse_doubles([replacement.find for replacement in table], name)
    return tuple(table)


def _read_list(entries: object, name: str) -> list[object]:
    if not isinstance(entries, list):
        raise InputError(
            f"'{name}' is a {type(entries).__name__}, not a list: write one entry a line, each "
            f"after '- ', or [] for an empty list"
        )
    return entries


def _refuse_doubles(texts: list[str], name: str) -> None:
    first: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if text in first:
            raise InputError(
                f"'{name}', entry {number} ({text!r}) repeats entry {first[text]}: remove one"
            )
        first[text] = number
