"""The earlier turns of conversations, which a column of ``filtered_pairs`` may have."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

from ja_instruct.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from ja_instruct.chat_template import Turn

HISTORY = "history"


def read_histories(pairs: Dataset, name: str) -> list[list[Turn]]:
    """Return the turns before each pair of the dataset ``name``; none without the column.

    Raises:
        InputError: A history is not a list of turns with ``role`` and ``content``, or the roles are
            not an optional system turn followed by user and assistant in turn.
    """
    if HISTORY not in pairs.column_names:
        return [[] for _ in range(len(pairs))]
    return [
        _read_turns(value, f"'{name}': record {number}")
        for number, value in enumerate(pairs[HISTORY], start=1)
    ]


def _read_turns(value: Any, where: str) -> list[Turn]:
    turns = value or []
    if not isinstance(turns, list) or not all(map(_is_turn, turns)):
        raise InputError(
            f"{where}: '{HISTORY}' is {value!r:.60}, not a list of turns with the texts 'role' and "
            f"'content'; rename the column if it holds something else"
        )
    roles = [turn["role"] for turn in turns]
    exchanges = roles[1:] if roles[:1] == ["system"] else roles
    # the pair itself begins with the user
    expected = [role for _, role in zip(exchanges, cycle(("user", "assistant")), strict=False)]
    if exchanges != expected or exchanges[-1:] == ["user"]:
        raise InputError(
            f"{where}: the roles of '{HISTORY}' are {', '.join(roles)}; they must be user and "
            f"assistant in turn, up to an assistant's, after at most one system turn"
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(
        isinstance(turn.get(key), str) for key in ("role", "content")
    )
