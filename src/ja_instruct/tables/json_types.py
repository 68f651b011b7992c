"""The types of JSON values: inferred record by record, as Arrow types and in words.

A value that its column's type cannot hold turns the column, or the key inside it, into JSON text
(``ja_instruct.tables.json_text``), unless the project reads the value (``Strict``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional, cast

from ja_instruct.errors import InputError
from ja_instruct.tables.json_text import dump
from ja_instruct.tables.nested import rebuild

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

# A float holds every integer up to it.
EXACT_INTEGER_MAX = 2**53
# Arrow refuses types of more than 64 levels.
DEPTH_MAX = 50
# Every struct has the keys of all of them, so keys that are data, such as names, fill the memory.
KEYS_MAX = 1000


class LongInteger:
    """The type of integers of which at least one is above ``EXACT_INTEGER_MAX``."""


class JSONText:
    """The type of values that no other type holds: each is kept as JSON text."""


# None (nulls alone), bool, int, LongInteger, float, str, JSONText, [type of the items] or
# {key: type}
JSONType = type[Any] | list[Any] | dict[str, Any] | None
# The keys, at any depth of lists, whose values the project reads and which must keep their type.
Strict = Optional[Mapping[str, "Strict"]]  # noqa: UP045 - | does not take a name in quotes
JSONValue = None | bool | int | float | str | list[Any] | dict[str, Any]

_WORDS = {
    None: "null",
    bool: "true or false",
    int: "a whole number",
    LongInteger: f"a whole number above {EXACT_INTEGER_MAX}",
    float: "a number with a fraction",
    str: "text",
    JSONText: "values of several types, or too large or too deep",
}


class TypeClashError(ValueError):
    """A value does not fit the type of its column.

    Attributes:
        path: The value's place, such as ``.conversations[].content``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path = ""


def widen(known: JSONType, value: JSONValue, strict: Strict = None, depth: int = 0) -> JSONType:
    """Return the type that fits the values so far and this one; ``known`` itself if it fits.

    Null fits every type, an object may add keys, and integers and floats may mix if a float holds
    every integer. ``JSONText`` fits everything else: values of several types, integers beyond 64
    bits, objects with more than 1,000 keys, more than 50 levels of nesting.

    Args:
        known: The type of the values so far.
        value: The next value.
        strict: The keys of ``value`` that must keep their type; None if ``value`` need not.
        depth: The number of lists and objects around ``value``.

    Raises:
        TypeClashError: The value of a strict key is of another type.

    Examples:
        >>> widen({"id": int}, {"id": 0.5, "本文": "はい"})
        {'id': <class 'float'>, '本文': <class 'str'>}
        >>> widen([str], ["はい", 3])
        [<class 'ja_instruct.tables.json_types.JSONText'>]
        >>> widen({"content": str}, {"content": 3}, strict={"content": {}})
        Traceback (most recent call last):
        ...
        ja_instruct.tables.json_types.TypeClashError: a whole number where text is expected
    """
    if value is None or known is JSONText or type(value) is known is not int:
        return known
    if not isinstance(value, dict | list):
        return _widen_scalar(known, value, strict)
    if depth > DEPTH_MAX:
        return _clash(known, value, strict)
    return (_widen_object if isinstance(value, dict) else _widen_list)(known, value, strict, depth)


def _widen_scalar(known: JSONType, value: float | str, strict: Strict) -> JSONType:
    kind = _kind(value)
    if kind is not JSONText:
        if known is None or known is kind:
            return kind
        if not isinstance(known, list | dict):
            if {known, kind} == {int, LongInteger}:
                return LongInteger
            if {known, kind} == {int, float}:
                return float
    return _clash(known, value, strict)


def _kind(value: float | str) -> type[Any]:
    if type(value) is not int:
        return type(value) if type(value) in _WORDS else JSONText
    if not -(2**63) <= value < 2**63:
        return JSONText
    return LongInteger if abs(value) > EXACT_INTEGER_MAX else int


def _widen_object(known: JSONType, value: Any, strict: Strict, depth: int) -> JSONType:
    if known is not None and not isinstance(known, dict):
        return _clash(known, value, strict)
    widened = {} if known is None else known
    for key, item in value.items():
        old = widened.get(key)
        try:
            new = widen(old, item, None if strict is None else strict.get(key), depth + 1)
        except TypeClashError as clash:
            clash.path = f".{key}{clash.path}"
            raise
        if new is not old or key not in widened:
            if widened is known:
                widened = dict(widened)
            widened[key] = new
    return JSONText if strict is None and len(widened) > KEYS_MAX else widened


def _widen_list(known: JSONType, value: Any, strict: Strict, depth: int) -> JSONType:
    if known is not None and not isinstance(known, list):
        return _clash(known, value, strict)
    old = known[0] if known is not None else None
    new = old
    for item in value:
        try:
            new = widen(new, item, strict, depth + 1)
        except TypeClashError as clash:
            clash.path = f"[]{clash.path}"
            raise
    return known if known is not None and new is old else [new]


def _clash(known: JSONType, value: JSONValue, strict: Strict) -> type[JSONText]:
    if strict is None:
        return JSONText
    found = widen(None, value)
    raise TypeClashError(f"{describe(found)} where {describe(known)} is expected")


def describe(known: JSONType) -> str:
    """Return the type in words.

    Examples:
        >>> describe([{"role": str, "content": str}])
        'a list of objects with role, content'
    """
    if isinstance(known, dict):
        return f"an object with {', '.join(known) or 'no keys'}"
    if isinstance(known, list):
        inner = known[0]
        if isinstance(inner, dict):
            return f"a list of objects with {', '.join(inner) or 'no keys'}"
        if isinstance(inner, list):
            return "a list of lists"
        return "a list" if inner is None else f"a list of {_WORDS[inner]}"
    return _WORDS[known]


def to_arrow(known: JSONType, text: pa.DataType | None = None) -> pa.DataType:
    """Return the Arrow type: int64, double, string, bool, null, and lists and structs of them.

    ``text`` is the type for ``JSONText``, which is ``arrow.json`` by default.
    """
    import pyarrow as pa

    if isinstance(known, dict):
        fields = [pa.field(key, to_arrow(inner, text)) for key, inner in known.items()]
        return pa.struct(fields)
    if isinstance(known, list):
        return pa.list_(to_arrow(known[0], text))
    leaves: Mapping[Any, pa.DataType] = {
        None: pa.null(),
        bool: pa.bool_(),
        int: pa.int64(),
        LongInteger: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
        JSONText: text or pa.json_(),
    }
    return leaves[known]


def build_columns(
    rows: Sequence[dict[str, Any] | None], types: Mapping[str, JSONType]
) -> list[pa.Array]:
    """Return the columns of rows that fit these types; None is a row of nulls."""
    import pyarrow as pa

    texts = {key: known for key, known in types.items() if holds(known, JSONText)}
    if texts:
        rows = [row and {**row, **_encode(row, texts)} for row in rows]
    stored = pa.array(rows, to_arrow(dict(types), pa.string())).flatten()
    return [
        rebuild(column, to_arrow(known), _wrap_text)
        for column, known in zip(stored, types.values(), strict=True)
    ]


def infer_columns(
    rows: Sequence[dict[str, Any]],
    types: Mapping[str, JSONType],
    strict: Strict,
    first_record: int = 1,
) -> pa.Table:
    """Return the rows as a table; see ``widen`` for the types.

    Raises:
        InputError: A strict value is of another type; the error names the record, of which the
            first is ``first_record``.
    """
    import pyarrow as pa

    known: JSONType = dict(types)
    for number, row in enumerate(rows, start=first_record):
        try:
            known = widen(known, row, strict)
        except TypeClashError as clash:
            raise InputError(
                f"record {number}: '{clash.path[1:]}' is {clash}; give every record the expected "
                f"type there"
            ) from clash
    found = cast("dict[str, JSONType]", known)
    return pa.table(build_columns(rows, found), names=list(found))


def _wrap_text(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return pa.ExtensionArray.from_storage(wanted, array)


def holds(known: JSONType, *kinds: JSONType) -> bool:
    """Return whether the type, or one inside it, is among these."""
    if isinstance(known, dict):
        return any(holds(inner, *kinds) for inner in known.values())
    return holds(known[0], *kinds) if isinstance(known, list) else known in kinds


def _encode(value: Any, known: JSONType) -> Any:
    """Return the value with JSON text in the places of ``JSONText``."""
    if value is None:
        return None
    if known is JSONText:
        return dump(value)
    if isinstance(known, dict):
        return {key: _encode(value.get(key), inner) for key, inner in known.items()}
    return [_encode(item, known[0]) for item in value] if isinstance(known, list) else value
