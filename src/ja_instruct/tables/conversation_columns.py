"""Columns of any source made into conversations: lists of turns with role and content."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa


def conversations_of_turns(
    column: pa.ChunkedArray, turn_keys: Mapping[str, str], roles: Mapping[str, str]
) -> pa.ChunkedArray:
    """Return lists of turns with our keys and roles.

    Args:
        column: Lists of structs.
        turn_keys: Our key: theirs, for those that differ. Others are kept.
        roles: Our role: theirs, for those that differ. Others are kept.

    Returns:
        Lists of structs with ``role`` and ``content``, both text, before all other keys. What
        needs no change is not copied.

    Raises:
        InputError: The column holds no lists of turns; its type is told.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_null(column.type):
        return column.cast(pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
    if not (types.is_list(column.type) or types.is_large_list(column.type)) or not (
        types.is_struct(column.type.value_type) or types.is_null(column.type.value_type)
    ):
        raise InputError(
            f"holds {column.type}, not lists of turns such as "
            f"[{{'role': 'user', 'content': '…'}}]; name the column of turns by "
            f"'columns: {{conversations: …}}'"
        )
    if types.is_large_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    turn_type, order = _turn_type(column.type.value_type, turn_keys)
    chunks = [_turns(chunk, turn_type, order, roles) for chunk in column.chunks]
    return pa.chunked_array(chunks, type=pa.list_(turn_type))


def _turn_type(
    theirs: pa.DataType, turn_keys: Mapping[str, str]
) -> tuple[pa.StructType, list[str]]:
    """Return the type of our turns, and the names of its fields in theirs."""
    import pyarrow as pa
    from pyarrow import types

    fields = {} if types.is_null(theirs) else {field.name: field.type for field in theirs}
    main = {key: turn_keys.get(key, key) for key in ("role", "content")}
    missing = [key for key in main.values() if fields and key not in fields]
    if missing:
        raise InputError(
            f"its turns have no {' and no '.join(map(repr, missing))}, but {', '.join(fields)}; "
            f"say which they are by 'turn_keys: {{role: …, content: …}}'"
        )
    for key in main.values():
        type_ = fields.get(key, pa.string())
        if not (types.is_null(type_) or _is_text(type_)):
            raise InputError(f"the '{key}' of its turns is {type_}, not text")
    ours = {theirs: ours for ours, theirs in turn_keys.items()}
    rest = {key: type_ for key, type_ in fields.items() if key not in main.values()}
    turn_type = pa.struct(
        [
            *((key, pa.string()) for key in main),
            *((ours.get(key, key), type_) for key, type_ in rest.items()),
        ]
    )
    return turn_type, [*main.values(), *rest]


def _is_text(type_: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return bool(
        types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)
    )


def _turns(
    lists: pa.ListArray, turn_type: pa.StructType, order: list[str], roles: Mapping[str, str]
) -> pa.ListArray:
    import pyarrow as pa

    if lists.type.value_type.equals(turn_type) and not roles:
        return lists
    values = lists.values
    if pa.types.is_null(values.type):
        turns = pa.nulls(len(values), turn_type)
    else:
        columns = [
            values.field(name).cast(turn_type.field(index).type) for index, name in enumerate(order)
        ]
        columns[0] = _rename_roles(columns[0], roles)
        turns = pa.StructArray.from_arrays(
            columns, fields=list(turn_type), mask=values.is_null() if values.null_count else None
        )
    return pa.Array.from_buffers(
        pa.list_(turn_type),
        len(lists),
        lists.buffers()[:2],
        null_count=lists.null_count,
        offset=lists.offset,
        children=[turns],
    )


def _rename_roles(names: pa.StringArray, roles: Mapping[str, str]) -> pa.StringArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not roles:
        return names
    found = pc.index_in(names, value_set=pa.array(roles.values(), pa.string()))
    return pc.coalesce(pa.array(roles.keys(), pa.string()).take(found), names)


def conversations_of_pairs(
    instructions: pa.ChunkedArray, responses: pa.ChunkedArray, absent: pa.Array
) -> pa.Array:
    """Return conversations of a user's and an assistant's turn.

    Args:
        instructions: Texts.
        responses: As many texts.
        absent: True where there is no conversation.

    Raises:
        InputError: A column holds no texts; its type is told.
    """
    import pyarrow as pa
    from pyarrow import types

    for side, column in (("instruction", instructions), ("response", responses)):
        if not (types.is_null(column.type) or _is_text(column.type)):
            raise InputError(f"its column for '{side}' holds {column.type}, not text")
    count = len(instructions)
    sides = pa.concat_arrays(
        [column.cast(pa.string()).combine_chunks() for column in (instructions, responses)]
    )
    # 0, count, 1, count + 1, …
    contents = sides.take(pa.array(np.arange(2 * count).reshape(2, count).T.ravel()))
    roles = pa.array(["user", "assistant"] * count, pa.string())
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32)),
        pa.StructArray.from_arrays([roles, contents], names=["role", "content"]),
        mask=absent,
    )
