"""Lists of turns with role and content, from columns of other shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ja_instruct.errors import InputError
from ja_instruct.tables.conversation_sources import CONVERSATIONS, TURN
from ja_instruct.tables.json_text import is_json, load_values
from ja_instruct.tables.json_types import JSONType, Strict, infer_columns
from ja_instruct.tables.nested import with_list_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa


def strict_keys(declared: JSONType) -> Strict:
    """Return the keys of the declared types, at any depth, which must keep these types."""
    if isinstance(declared, list):
        return strict_keys(declared[0])
    items = declared.items() if isinstance(declared, dict) else ()
    return {key: strict_keys(inner) for key, inner in items}


def convert_turns(
    column: pa.ChunkedArray, turn_keys: Mapping[str, str], roles: Mapping[str, str]
) -> pa.ChunkedArray:
    """Return lists of turns with our keys and roles.

    Args:
        column: Lists of structs.
        turn_keys: Our keys and theirs where they differ; other keys are kept.
        roles: Our roles and theirs where they differ; other roles are kept.

    Returns:
        Lists of structs with ``role`` and ``content``, both text, before all other keys. Parts
        that need no change are not copied.

    Raises:
        InputError: The column does not hold lists of turns, or a turn lacks role or content.
    """
    import pyarrow as pa
    from pyarrow import types

    column = decode_turns(column, [turn_keys.get(key, key) for key in TURN])
    if types.is_null(column.type):
        return column.cast(pa.list_(pa.struct([(key, pa.string()) for key in TURN])))
    is_list = types.is_list(column.type) or types.is_large_list(column.type)
    turn = column.type.value_type if is_list else column.type
    if not is_list or not (types.is_struct(turn) or types.is_null(turn)):
        raise InputError(
            f"holds {column.type}, not lists of turns such as "
            f"[{{'role': 'user', 'content': '…'}}]; name the column of turns by "
            f"'columns: {{conversations: …}}'"
        )
    their_keys = _require_turn_keys(turn, turn_keys)
    our_keys = {theirs: ours for ours, theirs in turn_keys.items()}
    others = [(our_keys.get(key, key), turn.field(key).type) for key in their_keys[len(TURN) :]]
    our_turn = pa.struct([*((key, pa.string()) for key in TURN), *others])
    chunks = (column.cast(pa.list_(turn)) if types.is_large_list(column.type) else column).chunks
    if roles or not turn.equals(our_turn):
        chunks = [
            with_list_values(lists, _build_turns(lists.values, their_keys, our_turn, roles))
            for lists in chunks
        ]
    return pa.chunked_array(chunks, type=pa.list_(our_turn))


def decode_turns(
    column: pa.ChunkedArray, keys: Sequence[str] = TURN, first_record: int = 1
) -> pa.ChunkedArray:
    """Return conversations that are JSON text, or whose turns or main keys are, as lists of turns.

    ``datasets`` keeps them as JSON text if the turns have different keys.

    Args:
        column: Any column; one of another type is returned as it is.
        keys: The source's keys for role and content.
        first_record: The number of the column's first row.

    Raises:
        InputError: Names the record that is not a list of turns with texts.
    """
    from pyarrow import types

    is_list = types.is_list(column.type) or types.is_large_list(column.type)
    turn = column.type.value_type if is_list else column.type
    main = [turn.field(key).type for key in keys if types.is_struct(turn) and key in turn.names]
    if not any(map(is_json, [turn, *main])):
        return column
    rows = [row for chunk in column.chunks for row in load_values(chunk, nulls=False)]
    known: dict[str, JSONType] = {CONVERSATIONS: [dict.fromkeys(keys, str)]}
    records = [{CONVERSATIONS: row} for row in rows]
    return infer_columns(records, known, strict_keys(known), first_record).column(0)


def _build_turns(
    theirs: pa.Array, keys: list[str], our_turn: pa.StructType, roles: Mapping[str, str]
) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_null(theirs.type):
        return pa.nulls(len(theirs), our_turn)
    values = [theirs.field(key).cast(field.type) for key, field in zip(keys, our_turn, strict=True)]
    values[0] = _rename_roles(values[0], roles)
    mask = theirs.is_null() if theirs.null_count else None
    return pa.StructArray.from_arrays(values, fields=list(our_turn), mask=mask)


def _require_turn_keys(turn: pa.DataType, turn_keys: Mapping[str, str]) -> list[str]:
    """Return the keys of a source's turns, those for role and content first."""
    from pyarrow import types

    fields = {} if types.is_null(turn) else {field.name: field.type for field in turn}
    main = [turn_keys.get(key, key) for key in TURN]
    missing = [key for key in main if fields and key not in fields]
    if missing:
        raise InputError(
            f"its turns have no {' and no '.join(map(repr, missing))}, but {', '.join(fields)}; "
            f"name the keys by 'turn_keys: {{role: …, content: …}}'"
        )
    for key in main:
        if key in fields and not _is_text(fields[key]):
            raise InputError(f"the '{key}' of its turns is {fields[key]}, not text")
    return [*main, *(key for key in fields if key not in main)]


def _is_text(type_: pa.DataType) -> bool:
    from pyarrow import types

    plain = type_.value_type if types.is_dictionary(type_) else type_
    return any(
        is_type(plain)
        for is_type in (types.is_null, types.is_string, types.is_large_string, types.is_string_view)
    )


def _rename_roles(names: pa.StringArray, roles: Mapping[str, str]) -> pa.StringArray:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not roles:
        return names
    found = pc.index_in(names, value_set=pa.array(roles.values(), pa.string()))
    return pc.coalesce(pa.array(roles.keys(), pa.string()).take(found), names)


class SeenTurns:
    """The roles and keys of all turns so far, and whether any has a text."""

    def __init__(self) -> None:
        self._roles: dict[str, None] = {}
        self._keys: list[str] = []
        self._any_text = False

    def add(self, conversations: pa.ChunkedArray) -> None:
        """Note the turns of more conversations."""
        import pyarrow.compute as pc

        turns = pc.list_flatten(conversations)
        if not len(turns):
            return
        self._keys = [field.name for field in turns.type]
        roles = pc.unique(pc.struct_field(turns, "role")).to_pylist()
        self._roles.update(dict.fromkeys(role for role in roles if role is not None))
        texts = pc.struct_field(turns, "content")
        self._any_text = self._any_text or texts.null_count < len(texts)

    def require_known(self) -> None:
        """Raise ``InputError`` unless a turn has the role of a user or an assistant, and a text."""
        if self._keys and not (self._roles and self._any_text):
            others = [key for key in self._keys if key not in TURN]
            raise InputError(
                f"no turn has both 'role' and 'content'; the other keys are "
                f"{', '.join(others) or 'none'}. Name the keys by 'turn_keys: {{role: …, "
                f"content: …}}'"
            )
        if self._roles and not self._roles.keys() & {"user", "assistant"}:
            raise InputError(
                f"no turn has the role 'user' or 'assistant'; the roles are "
                f"{', '.join(list(self._roles)[:8])}. Name them by 'roles: {{user: …, "
                f"assistant: …}}'"
            )
