"""Arrow arrays of lists and structs, rebuilt with other types at their leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa


def rebuild(
    array: pa.Array, wanted: pa.DataType, convert: Callable[[pa.Array, pa.DataType], pa.Array]
) -> pa.Array:
    """Return the array as another type; parts that keep their type are not copied.

    ``Array.cast`` of pyarrow 25 makes lists of nulls shorter than their offsets.

    Args:
        array: Lists are rebuilt as lists and structs as structs, which may gain fields of nulls.
        wanted: The type to return.
        convert: Returns an array, of any other type, as the type that is wanted there.
    """
    import pyarrow as pa
    from pyarrow import types

    if array.type.equals(wanted):
        return array
    if types.is_null(array.type):
        return pa.nulls(len(array), wanted)
    if types.is_struct(wanted) and types.is_struct(array.type):
        known = {field.name: index for index, field in enumerate(array.type)}
        children = [
            rebuild(array.field(known[field.name]), field.type, convert)
            if field.name in known
            else pa.nulls(len(array), field.type)
            for field in wanted
        ]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(wanted), mask=mask)
    if types.is_list(wanted) and types.is_list(array.type):
        return with_list_values(array, rebuild(array.values, wanted.value_type, convert))
    return convert(array, wanted)


def with_list_values(lists: pa.ListArray, values: pa.Array) -> pa.ListArray:
    """Return lists of the same lengths with other values; the offsets are not copied."""
    import pyarrow as pa

    return pa.Array.from_buffers(
        pa.list_(values.type),
        len(lists),
        lists.buffers()[:2],
        null_count=lists.null_count,
        offset=lists.offset,
        children=[values],
    )
