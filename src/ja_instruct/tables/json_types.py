"""The types of JSON values: inferred record by record, as Arrow types and in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

# A float holds every integer up to it.
EXACT_INTEGER_MAX = 2**53


class LongInteger:
    """The type of integers of which at least one is above ``EXACT_INTEGER_MAX``."""


# None (nulls alone), bool, int, LongInteger, float, str, [type of the items] or {key: type}
JSONType = type[Any] | list[Any] | dict[str, Any] | None
JSONValue = None | bool | int | float | str | list[Any] | dict[str, Any]

_WORDS = {
    None: "null",
    bool: "true or false",
    int: "a whole number",
    LongInteger: f"a whole number above {EXACT_INTEGER_MAX}",
    float: "a number with a fraction",
    str: "text",
}


class TypeClashError(ValueError):
    """A value does not fit the type of its column.

    Attributes:
        path: The value's place, such as ``.conversations[].content``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path = ""


def widen(known: JSONType, value: JSONValue) -> JSONType:
    """Return the type that fits the values so far and this one; ``known`` itself if it fits.

    Null fits every type, an object may add keys, and integers and floats may mix if a float holds
    every integer.

    Raises:
        TypeClashError: The value is of another type, or an integer beyond 64 bits.

    Examples:
        >>> widen({"id": int}, {"id": 0.5, "本文": "はい"})
        {'id': <class 'float'>, '本文': <class 'str'>}
        >>> widen([str], ["はい", 3])
        Traceback (most recent call last):
        ...
        ja_instruct.tables.json_types.TypeClashError: a whole number where text is expected
    """
    if value is None or type(value) is known is not int:
        return known
    if isinstance(value, dict):
        return _widen_object(known, value)
    if isinstance(value, list):
        return _widen_list(known, value)
    kind = _kind(value)
    if known is None or known is kind:
        return kind
    if not isinstance(known, list | dict):
        if {known, kind} == {int, LongInteger}:
            return LongInteger
        if {known, kind} == {int, float}:
            return float
    raise _clash(known, value)


def _kind(value: float | str) -> type[Any]:
    if type(value) is not int:
        return type(value)
    if not -(2**63) <= value < 2**63:
        raise TypeClashError("a whole number beyond 64 bits; write it as text")
    return LongInteger if abs(value) > EXACT_INTEGER_MAX else int


def _widen_object(known: JSONType, value: dict[str, Any]) -> JSONType:
    if known is not None and not isinstance(known, dict):
        raise _clash(known, value)
    widened = {} if known is None else known
    for key, item in value.items():
        old = widened.get(key)
        try:
            new = widen(old, item)
        except TypeClashError as clash:
            clash.path = f".{key}{clash.path}"
            raise
        if new is not old or key not in widened:
            if widened is known:
                widened = dict(widened)
            widened[key] = new
    return widened


def _widen_list(known: JSONType, value: list[Any]) -> JSONType:
    if known is not None and not isinstance(known, list):
        raise _clash(known, value)
    old = known[0] if known is not None else None
    new = old
    for item in value:
        try:
            new = widen(new, item)
        except TypeClashError as clash:
            clash.path = f"[]{clash.path}"
            raise
    return known if known is not None and new is old else [new]


def _clash(known: JSONType, value: JSONValue) -> TypeClashError:
    found = widen(None, value)
    return TypeClashError(f"{describe(found)} where {describe(known)} is expected")


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


def to_arrow(known: JSONType) -> pa.DataType:
    """Return the Arrow type: int64, double, string, bool, null, and lists and structs of them."""
    import pyarrow as pa

    if isinstance(known, dict):
        return pa.struct([pa.field(key, to_arrow(inner)) for key, inner in known.items()])
    if isinstance(known, list):
        return pa.list_(to_arrow(known[0]))
    leaves: Mapping[Any, pa.DataType] = {
        None: pa.null(),
        bool: pa.bool_(),
        int: pa.int64(),
        LongInteger: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
    }
    return leaves[known]
