"""Word lists that a person edits, checked entry by entry: an error names them all, and the remedy.

Entries come from YAML, where an unquoted ``yes``, ``3`` or nothing at all is no text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_IN_QUOTES = "YAML reads yes, 3 or null without quotes as something else, so put it in quotes"


class Replacement(NamedTuple):
    """One line of a replacement table: every ``find`` in a text becomes ``replace``."""

    find: str
    replace: str


class _Places(NamedTuple):
    """How a message names an entry, given its position from 0."""

    name: str
    lines: Sequence[int] | None

    def at(self, position: int) -> str:
        if self.lines is None:
            return f"'{self.name}', entry {position + 1}"
        return f"{self.name}:{self.lines[position]}"

    def short(self, position: int) -> str:
        if self.lines is None:
            return f"entry {position + 1}"
        return f"line {self.lines[position]}"


def read_substrings(
    entries: object, name: str, lines: Sequence[int] | None = None, *, found: Sequence[str] = ()
) -> tuple[str, ...]:
    """Check a list of banned substrings.

    >>> read_substrings(["翻訳", "英訳"], "banned_substrings")
    ('翻訳', '英訳')
    >>> read_substrings(["翻訳", ""], "conf/banned.yml", lines=[2, 5])
    Traceback (most recent call last):
        ...
    ja_instruct.errors.InputError: conf/banned.yml:5 is empty: ...

    Args:
        entries: What YAML made of the list.
        name: Of the list, for messages; of its file where ``lines`` are known.
        lines: The line of each entry, from 1.
        found: Problems that whoever read the file has found already, to be told with the others.

    Raises:
        InputError: Listing every entry that is empty, doubled or no text.
    """
    places = _Places(name, lines)
    listed = _require_list(entries, places, found)
    problems = [*found]
    for position, entry in enumerate(listed):
        if not isinstance(entry, str):
            problems.append(f"{places.at(position)} is {entry!r:.60}, not a text: {_IN_QUOTES}")
        elif not entry:
            problems.append(
                f"{places.at(position)} is empty: every text contains it, so every pair would be "
                f"dropped. Remove the entry"
            )
    texts = {at: text for at, text in enumerate(listed) if text and isinstance(text, str)}
    problems += _find_doubles(texts, places)
    if problems:
        raise _tell(problems, name)
    return tuple(texts.values())


def read_replacements(
    entries: object, name: str, lines: Sequence[int] | None = None, *, found: Sequence[str] = ()
) -> tuple[Replacement, ...]:
    """Check a replacement table, whose lines are applied to a text one after the other.

    What one line puts in must be left alone by the lines after it, and by itself in a second run.
    (A text may still come to hold a ``find`` by what surrounds the replaced part; no table shows
    that.)

    >>> read_replacements([{"find": "よしmitsu", "replace": "よしみつ"}], "replacements")
    (Replacement(find='よしmitsu', replace='よしみつ'),)
    >>> chain = [Replacement("语", "語"), Replacement("語", "ご")]
    >>> read_replacements(chain, "replacements")
    Traceback (most recent call last):
        ...
    ja_instruct.errors.InputError: 'replacements', entry 1 puts in '語', in which entry 2 replaces
    '語' again: write what is meant in the end, 'ご', under 'replace' of entry 1, or put entry 2
    before entry 1 if '語' is to stay

    Args:
        entries: What YAML made of the table, mappings with ``find`` and ``replace``; or
            ``Replacement`` tuples.
        name: Of the table, for messages; of its file where ``lines`` are known.
        lines: The line of each entry, from 1.
        found: Problems that whoever read the file has found already, to be told with the others.

    Raises:
        InputError: Listing every entry with other keys, without text, with an empty ``find``,
            doubled, without effect, or part of a chain.
    """
    places = _Places(name, lines)
    problems = [*found]
    table: dict[int, Replacement] = {}
    for position, entry in enumerate(_require_list(entries, places, found)):
        fields = entry._asdict() if isinstance(entry, Replacement) else entry
        against = [f"{places.at(position)} {problem}" for problem in _judge_fields(fields)]
        problems += against
        if not against:
            table[position] = Replacement(fields["find"], fields["replace"])
    problems += _find_doubles({position: line.find for position, line in table.items()}, places)
    problems += _find_chains(table, places)
    if problems:
        raise _tell(problems, name)
    return tuple(table.values())


def find_covered(substrings: Sequence[str]) -> dict[str, str]:
    """Return the substrings that ban nothing more, each with another one that it contains.

    >>> find_covered(["英語", "英語訳", "翻訳"])
    {'英語訳': '英語'}
    """
    return {
        text: other
        for text in substrings
        if (other := next((o for o in substrings if o != text and o in text), None)) is not None
    }


def _require_list(entries: object, places: _Places, found: Sequence[str]) -> Sequence[Any]:
    if isinstance(entries, list | tuple):
        return entries
    where = f"'{places.name}'" if places.lines is None else places.name
    what = "empty" if entries is None else f"a {type(entries).__name__}"
    problem = (
        f"{where} is {what}, not a list: write one entry a line, each after '- ', or [] for an "
        f"empty list"
    )
    raise _tell([*found, problem], places.name)


def _judge_fields(fields: object) -> Iterator[str]:
    """Yield what is wrong with one line of a table, to follow the name of its place."""
    if not isinstance(fields, dict):
        yield f"is {fields!r:.60}: write a mapping with the keys 'find' and 'replace'"
        return
    missing = [key for key in Replacement._fields if key not in fields]
    unknown = [key for key in fields if key not in Replacement._fields]
    if missing or unknown:
        faults = [f"lacks '{key}'" for key in missing]
        faults += [f"has the unknown key {key!r}" for key in unknown]
        yield f"{' and '.join(faults)}: write the keys 'find' and 'replace', and no other"
        return
    no_text = [key for key in Replacement._fields if not isinstance(fields[key], str)]
    for key in no_text:
        removing = " ('' removes what is found)" if key == "replace" else ""
        yield f"has {fields[key]!r:.60} under '{key}', not a text: {_IN_QUOTES}{removing}"
    find, replace = fields["find"], fields["replace"]
    if find == "":
        yield (
            f"has an empty 'find', which would put {replace!r:.60} between all characters. Fill it "
            f"or remove the entry"
        )
    elif no_text:
        return
    elif find == replace:
        yield f"replaces {find!r} by itself, which changes nothing: correct it or remove the entry"
    elif find in replace:
        yield (
            f"puts in {replace!r}, which holds its own 'find' {find!r}, so that a second run would "
            f"change the text again: write more of the text around it under both, until 'replace' "
            f"no longer holds 'find'"
        )


def _find_doubles(texts: dict[int, str], places: _Places) -> Iterator[str]:
    first: dict[str, int] = {}
    for position, text in texts.items():
        if first.setdefault(text, position) != position:
            yield (
                f"{places.at(position)} ({text!r}) repeats {places.short(first[text])}: remove one"
            )


def _find_chains(table: dict[int, Replacement], places: _Places) -> Iterator[str]:
    for position, line in table.items():
        for later, other in table.items():
            if later > position and other.find in line.replace:
                yield _describe_chain(
                    line, other, places.at(position), places.short(position), places.short(later)
                )


def _describe_chain(line: Replacement, later: Replacement, at: str, here: str, there: str) -> str:
    final = line.replace.replace(later.find, later.replace)
    chain = f"{at} puts in {line.replace!r}, in which {there} replaces {later.find!r} again"
    if line.find in final:
        return f"{chain}, so that a second run would change the text again: remove one of the two"
    merge = f"write what is meant in the end, {final!r}, under 'replace' of {here}"
    return f"{chain}: {merge}, or put {there} before {here} if {line.replace!r} is to stay"


def _tell(problems: Sequence[str], name: str) -> InputError:
    if len(problems) == 1:
        return InputError(problems[0])
    listing = "\n".join(f"    - {problem}" for problem in problems)
    return InputError(f"{name} has {len(problems)} problems:\n{listing}")
