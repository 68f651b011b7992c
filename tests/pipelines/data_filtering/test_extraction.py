"""Records from conversations, by arrays, against a plain loop."""

from itertools import product
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset
from filter_pairs import first_turn, make_parameters
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.exchanges import read_records
from ja_instruct.pipelines.data_filtering.extraction import extract_records

MODES = [
    dict(zip(("multi_turn", "system_turns", "assistant_first"), mode, strict=True))
    for mode in product(
        ("first", "last", "all", "split"), ("drop", "keep"), ("pair", "skip", "reject")
    )
]
turns = st.none() | st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool", None]),
        "content": st.none() | st.text("問答𠮷\u2028", max_size=3),
    }
)
conversations = st.lists(st.none() | st.lists(turns, max_size=4), max_size=5)
TURN = pa.struct({"role": pa.string(), "content": pa.string()})


def extract(conversations: pa.ChunkedArray, **changes: Any) -> list[dict[str, Any]]:
    source = Dataset(pa.table({"conversations": conversations}))
    pairs, _ = extract_records(source, make_parameters(**changes))
    others = ["conversations", *(["exchange"] if "exchange" in pairs.column_names else [])]
    return pairs.remove_columns(others).to_list()


@given(conversations, st.integers(0, 5), st.sampled_from([pa.list_, pa.large_list]))
def test_fields_match_a_plain_loop(talks: list[list[Any] | None], cut: int, list_type: Any) -> None:
    array = pa.array(talks, list_type(TURN))
    chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)], array.type)
    records = [{"conversations": list(filter(None, talk or []))} for talk in talks]
    expected = [
        {"instruction": first_turn(record, "user"), "response": first_turn(record, "assistant")}
        for record in records
    ]
    assert extract(chunked) == expected
    assert extract(chunked.slice(1)) == expected[1:]


def test_turns_behind_a_null_conversation_are_not_read() -> None:
    turn = pa.array([{"role": "user", "content": "隠"}, {"role": "user", "content": "見"}], TURN)
    hidden = pa.ListArray.from_arrays([0, 1, 2], turn, mask=pa.array([True, False]))
    for mode in MODES:
        instructions = [pair["instruction"] for pair in extract(pa.chunked_array([hidden]), **mode)]
        assert instructions == ["", "見"]


def test_turns_may_have_other_keys_and_large_strings() -> None:
    kind = pa.list_(pa.struct({"n": pa.int64(), "content": pa.large_string(), "role": pa.string()}))
    array = pa.array([[{"n": 1, "content": "問", "role": "user"}]], kind)
    assert extract(pa.chunked_array([array])) == [{"instruction": "問", "response": ""}]
    (pair,) = extract(pa.chunked_array([array]), multi_turn="all")
    assert pair == {"instruction": "問", "response": "", "history": []}


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.list_(pa.string()), pa.list_(pa.struct({"role": pa.string()}))]
)
def test_null_conversations_of_other_types_are_empty(kind: pa.DataType) -> None:
    pairs = extract(pa.chunked_array([pa.nulls(2, kind)]))
    assert pairs == [{"instruction": "", "response": ""}] * 2


def test_the_first_wrong_record_is_named() -> None:
    array = pa.array([*[None] * 1042, "問と答", 3 * "x"])
    for mode in MODES:
        with pytest.raises(InputError, match=r"'raw_conversations', record 1043: .* list of turns"):
            extract(pa.chunked_array([array]), **mode)


@given(conversations, st.sampled_from(MODES))
def test_every_mode_reads_the_turns_of_each_conversation(
    talks: list[list[Any] | None], mode: dict[str, str]
) -> None:
    array = pa.chunked_array([pa.array(talks, pa.list_(TURN))])
    source = Dataset(pa.table({"id": range(len(talks)), "conversations": array}))
    parameters = make_parameters(**mode)
    pairs, faults = extract_records(source, parameters)
    expected, found = [], []
    for number, talk in enumerate(talks):
        turns = [(turn["role"], turn["content"]) for turn in filter(None, talk or [])]
        for record in read_records(turns, parameters):
            if record.fault is not None:
                found.append((len(expected), record.fault[0], "pair", record.fault[1]))
            pair = {"instruction": record.instruction, "response": record.response, "id": number}
            if "history" in pairs.column_names:
                pair["history"] = [{"role": r, "content": c} for r, c in record.history]
            if "exchange" in pairs.column_names:
                pair["exchange"] = record.exchange
            expected.append(pair)
    assert pairs.remove_columns("conversations").to_list() == expected
    assert list(faults) == found


def test_pairs_of_one_conversation_share_its_columns() -> None:
    talk = [
        {"role": role, "content": f"{role}{number}"}
        for number in (1, 2)
        for role in ("user", "assistant")
    ]
    rows = [{"id": "a", "conversations": talk}, {"id": "b", "conversations": talk[:2]}]
    source = Dataset.from_list(rows * 700)
    pairs, _ = extract_records(source, make_parameters(multi_turn="split"))
    assert pairs["id"][:] == ["a", "a", "b"] * 700
    assert pairs["exchange"][:] == [1, 2, 1] * 700
    assert pairs["instruction"][:] == ["user1", "user2", "user1"] * 700
    assert pairs["conversations"][:3] == [talk, talk, talk[:2]]


def test_columns_of_the_source_with_our_names(caplog: pytest.LogCaptureFixture) -> None:
    turn = {"role": "user", "content": "問"}
    row = {"conversations": [turn], "history": [["q", "a"]], "exchange": "tokyo"}
    source = Dataset.from_list([row])
    (pair,) = extract_records(source, make_parameters())[0]
    assert pair["source_history"] == [["q", "a"]]
    assert (pair["exchange"], pair.get("history")) == ("tokyo", None)
    assert "the column 'history' is kept as 'source_history'" in caplog.text
    (pair,) = extract_records(source, make_parameters(multi_turn="split"))[0]
    assert (pair["exchange"], pair["source_exchange"]) == (1, "tokyo")
