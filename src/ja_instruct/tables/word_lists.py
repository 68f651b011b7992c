"""Word lists that a person edits as YAML: an error names every wrong entry, its line and remedy.

PyYAML's nodes give the lines and the source texts; its values would show an unquoted ``yes`` as
``True``, and some cannot be made, such as the day 2024-13-45.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import yaml

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

WordListKind = Literal["substrings", "replacements"]

_IN_QUOTES = "YAML reads yes, 3 or null without quotes as something else, so put it in quotes"


class Replacement(NamedTuple):
    """One entry of a replacement table: every ``find`` in a text becomes ``replace``."""

    find: str
    replace: str


class Substrings(list[str]):
    """A checked list of banned substrings."""


class Replacements(list[Replacement]):
    """A checked replacement table."""


class _Entry(NamedTuple):
    """An entry with the names of its place in messages, and problems that only YAML shows."""

    place: str
    short_place: str
    value: object
    problems: tuple[str, ...] = ()


def read_substrings(entries: object, name: str) -> Substrings:
    """Return a list of banned substrings, checked unless ``parse_word_list`` made it.

    >>> read_substrings(["翻訳", "英訳"], "banned_substrings")
    ['翻訳', '英訳']
    >>> read_substrings(["翻訳", ""], "banned_substrings")
    Traceback (most recent call last):
        ...
    ja_instruct.errors.InputError: 'banned_substrings', entry 2 is empty: ...

    Raises:
        InputError: Lists every entry that is empty, repeated or not text.
    """
    if isinstance(entries, Substrings):
        return entries
    return _check_substrings(_number_entries(entries, name), name)


def read_replacements(entries: object, name: str) -> Replacements:
    """Return a replacement table, checked unless ``parse_word_list`` made it.

    Its entries are applied to a text one after the other. No later entry, and no second run of the
    table, may change what an entry inserts. (A text may still come to contain a ``find`` across the
    borders of an inserted part; no check of the table can exclude that.)

    >>> read_replacements([{"find": "よしmitsu", "replace": "よしみつ"}], "replacements")
    [Replacement(find='よしmitsu', replace='よしみつ')]
    >>> chain = [Replacement("语", "語"), Replacement("語", "ご")]
    >>> read_replacements(chain, "replacements")
    Traceback (most recent call last):
        ...
    ja_instruct.errors.InputError: 'replacements', entry 1 inserts '語', in which entry 2 replaces
    '語' again: write the final text 'ご' under 'replace' of entry 1, or move entry 2 before entry 1
    to keep '語'

    Args:
        entries: Mappings with ``find`` and ``replace``, or ``Replacement`` tuples.
        name: The list's name in messages.

    Raises:
        InputError: Lists every entry with other keys, with something else than text, with an empty
            ``find``, repeated, without effect, or part of a chain.
    """
    if isinstance(entries, Replacements):
        return entries
    return _check_replacements(_number_entries(entries, name), name)


def parse_word_list(text: str, kind: WordListKind, name: str) -> Substrings | Replacements:
    """Return the checked entries of a YAML file.

    Args:
        text: The content of the file.
        kind: Whether the entries are texts or mappings with ``find`` and ``replace``.
        name: The file's name in messages.

    Raises:
        InputError: Names the line that is not valid YAML, or lists every wrong entry as
            ``read_substrings`` and ``read_replacements`` do, with its line.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _explain(error, text, name) from error
    if not isinstance(root, yaml.SequenceNode):
        what = "a mapping" if isinstance(root, yaml.MappingNode) else "a single value"
        is_empty = root is None or root.tag == "tag:yaml.org,2002:null"
        raise _not_a_list(name, "empty" if is_empty else what)
    entries = [_parse_entry(node, name) for node in root.value]
    check = _check_substrings if kind == "substrings" else _check_replacements
    return check(entries, name)


def _number_entries(entries: object, name: str) -> list[_Entry]:
    if not isinstance(entries, list | tuple):
        what = "empty" if entries is None else f"a {type(entries).__name__}"
        raise _not_a_list(f"'{name}'", what)
    values = [entry._asdict() if isinstance(entry, Replacement) else entry for entry in entries]
    return [
        _Entry(f"'{name}', entry {number}", f"entry {number}", value)
        for number, value in enumerate(values, start=1)
    ]


def _not_a_list(where: str, what: str) -> InputError:
    return InputError(
        f"{where} is {what}, not a list: write one entry a line, each after '- ', or [] for an "
        f"empty list"
    )


class _NotText:
    """A value that YAML reads as a number, a date or the like, shown as in the file."""

    def __init__(self, node: yaml.Node) -> None:
        is_scalar = isinstance(node, yaml.ScalarNode)
        self._source = (node.value or "nothing") if is_scalar else "a list within the list"

    def __repr__(self) -> str:
        return self._source


def _parse_text(node: yaml.Node) -> object:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
    return node.value if is_text else _NotText(node)


def _parse_entry(node: yaml.Node, name: str) -> _Entry:
    line = node.start_mark.line + 1
    place, short_place = f"{name}:{line}", f"line {line}"
    if not isinstance(node, yaml.MappingNode):
        return _Entry(place, short_place, _parse_text(node), tuple(_find_joined([node], name)))
    problems = list(_find_joined([value for _, value in node.value], name))
    keys = [str(_parse_text(key)) for key, _ in node.value]
    repeated = [f"'{key}'" for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if repeated:
        problems.append(
            f"{place} has {' and '.join(repeated)} more than once: begin every entry with '- '"
        )
    values = [_parse_text(value) for _, value in node.value]
    return _Entry(place, short_place, dict(zip(keys, values, strict=True)), tuple(problems))


def _find_joined(nodes: Iterable[yaml.Node], name: str) -> Iterator[str]:
    """Yield a problem for each text that YAML silently joins from several lines."""
    for node in nodes:
        # with | and > several lines are intended
        may_join = isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">")
        if may_join and node.start_mark.line != node.end_mark.line:
            yield (
                f"{name}:{node.start_mark.line + 1} continues in line {node.end_mark.line + 1}, "
                f"and YAML joins them to one text: begin every entry with '- ', and write a line "
                f"break as \\n in double quotes"
            )


def _explain(error: yaml.YAMLError, text: str, name: str) -> InputError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return InputError(
            f"{name}:{line}: contains the control character U+{int(error.character):04X}, which "
            f"YAML forbids: write it as an escape such as \\x01 in double quotes, or remove it"
        )
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = name if mark is None else f"{name}:{mark.line + 1}"
    what = getattr(error, "problem", None) or str(error)
    return InputError(
        f'{where}: not valid YAML ({what}); most often a text must be put in quotes, with a " in '
        f"it as \\\" and a \\ as \\\\, or a line lacks its '- ' or its indentation (of spaces)"
    )


def _check_substrings(entries: Sequence[_Entry], name: str) -> Substrings:
    problems: list[str] = []
    for entry in entries:
        problems += entry.problems
        if not isinstance(entry.value, str):
            problems.append(f"{entry.place} is {entry.value!r:.60}, not text: {_IN_QUOTES}")
        elif not entry.value:
            problems.append(
                f"{entry.place} is empty: every text contains it, so every pair would be dropped. "
                f"Remove the entry"
            )
    texts = [(entry, entry.value) for entry in entries if isinstance(entry.value, str)]
    problems += _find_repeated((entry, text) for entry, text in texts if text)
    _raise_problems(problems, name)
    return Substrings(text for _, text in texts)


def _check_replacements(entries: Sequence[_Entry], name: str) -> Replacements:
    problems: list[str] = []
    table: list[tuple[_Entry, Replacement]] = []
    for entry in entries:
        problems += entry.problems
        found = [f"{entry.place} {problem}" for problem in _find_problems(entry.value)]
        problems += found
        if isinstance(entry.value, dict) and not found:
            table.append((entry, Replacement(**entry.value)))
    problems += _find_repeated((entry, line.find) for entry, line in table)
    problems += _find_chains(table)
    _raise_problems(problems, name)
    return Replacements(line for _, line in table)


def _raise_problems(problems: Sequence[str], name: str) -> None:
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        listing = "\n".join(f"    - {problem}" for problem in problems)
        raise InputError(f"{name} has {len(problems)} problems:\n{listing}")


def _find_problems(fields: object) -> Iterator[str]:
    """Yield the problems of one entry of a table; the name of its place goes before them."""
    if not isinstance(fields, dict):
        yield f"is {fields!r:.60}: write a mapping with the keys 'find' and 'replace'"
        return
    faults = [f"lacks '{key}'" for key in Replacement._fields if key not in fields]
    faults += [f"has the unknown key {key!r}" for key in fields if key not in Replacement._fields]
    if faults:
        yield f"{' and '.join(faults)}: write the keys 'find' and 'replace', and no other"
        return
    find, replace = fields["find"], fields["replace"]
    if not isinstance(find, str):
        yield f"has {find!r:.60} under 'find', not text: {_IN_QUOTES}"
    if not isinstance(replace, str):
        yield (
            f"has {replace!r:.60} under 'replace', not text: {_IN_QUOTES} ('' removes each 'find')"
        )
    if find == "":
        yield (
            f"has an empty 'find', which would insert {replace!r:.60} between all characters. "
            f"Fill it or remove the entry"
        )
    elif isinstance(find, str) and isinstance(replace, str) and find in replace:
        if find == replace:
            yield f"replaces {find!r} by itself, without effect: correct it or remove the entry"
        else:
            yield (
                f"inserts {replace!r}, which contains its own 'find' {find!r}, so a second run "
                f"would change the text again: write more of the surrounding text under both, "
                f"until 'replace' no longer contains 'find'"
            )


def _find_repeated(texts: Iterable[tuple[_Entry, str]]) -> Iterator[str]:
    first: dict[str, _Entry] = {}
    for entry, text in texts:
        if first.setdefault(text, entry) is not entry:
            yield f"{entry.place} ({text!r}) repeats {first[text].short_place}: remove one"


def _find_chains(table: Sequence[tuple[_Entry, Replacement]]) -> Iterator[str]:
    for position, (entry, line) in enumerate(table):
        for later, other in table[position + 1 :]:
            if other.find in line.replace:
                here, there = entry.short_place, later.short_place
                final = line.replace.replace(other.find, other.replace)
                remedy = (
                    f": write the final text {final!r} under 'replace' of {here}, or move {there} "
                    f"before {here} to keep {line.replace!r}"
                )
                if line.find in final:
                    remedy = ", so a second run would change the text again: remove one of the two"
                yield (
                    f"{entry.place} inserts {line.replace!r}, in which {there} replaces "
                    f"{other.find!r} again{remedy}"
                )
