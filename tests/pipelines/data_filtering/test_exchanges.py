"""Which turns of a conversation become records."""

from typing import Any

import pytest
from filter_pairs import make_parameters

from ja_instruct.pipelines.data_filtering.exchanges import Record, read_records

ROLES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


def read(talk: str, multi_turn: str, **changes: Any) -> list[Record]:
    """Read the records of turns such as ``u1 a1``: the role's first letter, and the text."""
    turns = [(ROLES[turn[0]], turn) for turn in talk.split()]
    return read_records(turns, make_parameters(multi_turn=multi_turn, **changes))


def show(record: Record) -> str:
    """Return the texts of a record, and the rule that its turns violate."""
    texts = [*(text for _, text in record.history), record.instruction, record.response]
    fault = f" !{record.fault[0]}:{record.fault[1]}" if record.fault else ""
    return " ".join(text.replace("\n\n", "+") or "-" for text in texts) + fault


SHAPES = {
    # several exchanges
    "u1 a1 u2 a2 u3 a3": ("u1 a1", "u3 a3", "u1 a1 u2 a2 u3 a3", "u1 a1|u2 a2|u3 a3"),
    # turns of one role in a row
    "u1 u2 a1 a2 u3 a3": ("u1 a1", "u3 a3", "u1+u2 a1+a2 u3 a3", "u1+u2 a1+a2|u3 a3"),
    # no answer at the end, or none at all
    "u1 a1 u2": ("u1 a1", "u1 a1", "u1 a1", "u1 a1"),
    "u1": ("u1 -", "u1 -", "u1 -", "u1 -"),
    "u1 u2": ("u1 -", "u1+u2 -", "u1+u2 -", "u1+u2 -"),
    # no question
    "a1": ("- a1", "- -", "- -", "- -"),
    "": ("- -", "- -", "- -", "- -"),
    # begins with the assistant
    "a0 u1 a1": ("u1 a0", "u1 a1", "u1 a1", "u1 a1"),
    # system turns are dropped wherever they are
    "s1 u1 s2 a1 s3 u2 a2": ("u1 a1", "u2 a2", "u1 a1 u2 a2", "u1 a1|u2 a2"),
    # turns of a tool
    "u1 a1 t1 a2 u2 a3": (
        "u1 a1",
        "u2 a3",
        "u1 a1+a2 u2 a3 !unexpected_turn:tool",
        "u1 a1+a2 !unexpected_turn:tool|u2 a3",
    ),
}


@pytest.mark.parametrize(("talk", "expected"), SHAPES.items())
def test_shapes(talk: str, expected: tuple[str, ...]) -> None:
    modes = ("first", "last", "all", "split")
    assert tuple("|".join(map(show, read(talk, mode))) for mode in modes) == expected


def test_history_has_roles() -> None:
    (record,) = read("s1 s2 u1 a1 u2 a2", "all", system_turns="keep")
    assert record.history == (("system", "s1\n\ns2"), ("user", "u1"), ("assistant", "a1"))
    assert record.exchange == 2


@pytest.mark.parametrize(
    ("multi_turn", "expected"),
    [
        ("first", ["s1 u1 a1"]),
        ("last", ["s1 u2 a2"]),
        ("all", ["s1 u1 a1 u2 a2"]),
        ("split", ["s1 u1 a1", "s1 u2 a2"]),
    ],
)
def test_kept_system_turns_are_first_in_the_history(multi_turn: str, expected: list[str]) -> None:
    records = read("s1 u1 a1 u2 a2", multi_turn, system_turns="keep")
    assert list(map(show, records)) == expected


def test_a_later_system_turn_cannot_be_kept() -> None:
    (record,) = read("u1 a1 s1 u2 a2", "all", system_turns="keep")
    assert show(record) == "u1 a1 u2 a2 !unexpected_turn:system"
    assert show(*read("u1 a1 s1 u2 a2", "first", system_turns="keep")) == "u1 a1"


def test_conversations_that_begin_with_the_assistant() -> None:
    talk = "s1 a0 u1 a1 u2 a2"
    for multi_turn, pair, skip in (
        ("first", "u1 a0", "u1 a1"),
        ("last", "u2 a2", "u2 a2"),
        ("all", "u1 a1 u2 a2", "u1 a1 u2 a2"),
    ):
        assert show(*read(talk, multi_turn)) == pair
        assert show(*read(talk, multi_turn, assistant_first="skip")) == skip
        rejected = show(*read(talk, multi_turn, assistant_first="reject"))
        assert rejected == f"{pair} !assistant_first:assistant"
    (record,) = read("u1 a1", "first", assistant_first="reject")
    assert record.fault is None


def test_empty_turns() -> None:
    turns = [("user", "問"), ("assistant", None), ("assistant", "答"), (None, "x")]
    (record,) = read_records(turns, make_parameters(multi_turn="all"))
    assert (record.response, record.fault) == ("答", ("unexpected_turn", "null"))
