"""Conversations as records: instruction, response, and the turns before them.

An exchange is one or more user turns and the assistant turns that follow them. Turns of one role in
a row are joined by a blank line. User turns at the end, which have no answer, are left out unless
the conversation has no answer at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ja_instruct.pipelines.data_filtering.parameters import DataFilteringParameters

SPEAKERS = ("user", "assistant")
BLANK_LINE = "\n\n"

#: Role and content, either of which may be missing.
Turn = tuple[str | None, str | None]


class Record(NamedTuple):
    """A pair of a conversation.

    Attributes:
        instruction: The user's text; "" if there is none.
        response: The assistant's text; "" if there is none.
        history: Role and content of the turns before, at most the first of them ``system``.
        exchange: The position of the pair in the conversation, from 1.
        fault: Rule that the turns violate, and the role that does; None without such a turn.
    """

    instruction: str
    response: str
    history: tuple[tuple[str, str], ...] = ()
    exchange: int = 1
    fault: tuple[str, str] | None = None


class _Exchange(NamedTuple):
    users: list[str]
    assistants: list[str]
    #: roles of turns that belong to no exchange
    others: list[str]


def read_records(turns: Sequence[Turn], parameters: DataFilteringParameters) -> list[Record]:
    """Return the records of a conversation, at least one, as ``multi_turn`` says.

    Args:
        turns: Role and content of each turn, in order.
        parameters: ``multi_turn``, ``system_turns`` and ``assistant_first``.
    """
    system, rest = _split_system(turns, keep=parameters.system_turns == "keep")
    begins_with_assistant = next((role for role, _ in rest if role in SPEAKERS), "") == "assistant"
    if parameters.multi_turn == "first":
        skip = begins_with_assistant and parameters.assistant_first == "skip"
        records = [_read_first(rest, system, skip=skip)]
    else:
        exchanges = _read_exchanges(rest)
        records = _make_records(exchanges, system, parameters.multi_turn)
    if begins_with_assistant and parameters.assistant_first == "reject":
        fault = ("assistant_first", "assistant")
        records = [record._replace(fault=fault) for record in records]
    return records


_System = tuple[tuple[str, str], ...]


def _split_system(turns: Sequence[Turn], *, keep: bool) -> tuple[_System, list[Turn]]:
    """Return the system turns at the beginning as one, if they are kept, and the other turns."""
    if not keep:
        return (), [turn for turn in turns if turn[0] != "system"]
    first = next((at for at, (role, _) in enumerate(turns) if role != "system"), len(turns))
    text = _join(content or "" for _, content in turns[:first])
    return ((("system", text),) if text else ()), list(turns[first:])


def _read_first(turns: Sequence[Turn], system: _System, *, skip: bool) -> Record:
    """Return the first user and the first assistant turn; ``skip`` those before the user's."""
    start = next((at for at, (role, _) in enumerate(turns) if role == "user"), len(turns))
    answers = turns[start:] if skip else turns
    instruction, response = (
        next((content or "" for role, content in part if role == wanted), "")
        for part, wanted in ((turns, "user"), (answers, "assistant"))
    )
    return Record(instruction, response, system)


def _read_exchanges(turns: Iterable[Turn]) -> list[_Exchange]:
    """Return the exchanges, at least one, without assistant turns before the first user turn."""
    exchanges = [_Exchange([], [], [])]
    for role, content in turns:
        last = exchanges[-1]
        if role == "user":
            if last.assistants:
                last = _Exchange([], [], [])
                exchanges.append(last)
            last.users.append(content or "")
        elif role != "assistant":
            last.others.append(role or "null")
        elif last.users:
            last.assistants.append(content or "")
    if len(exchanges) > 1 and not exchanges[-1].assistants:
        exchanges.pop()
    return exchanges


def _make_records(exchanges: Sequence[_Exchange], system: _System, multi_turn: str) -> list[Record]:
    records = []
    history = system
    for number, (users, assistants, others) in enumerate(exchanges, start=1):
        fault = ("unexpected_turn", others[0]) if others else None
        pair = _join(users), _join(assistants)
        records.append(Record(*pair, history, number, fault))
        if multi_turn == "all":
            history = (*history, *zip(SPEAKERS, pair, strict=True))
    if multi_turn == "split":
        return records
    last = records[-1]
    if multi_turn == "all":
        last = last._replace(fault=next((one.fault for one in records if one.fault), None))
    return [last]


def _join(texts: Iterable[str]) -> str:
    return BLANK_LINE.join(filter(None, texts))
