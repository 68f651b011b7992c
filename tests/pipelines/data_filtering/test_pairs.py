"""Pairs from conversations, by arrays, against a plain loop."""

from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value
from filter_pairs import first_turn
from hypothesis import given
from hypothesis import strategies as st

from ja_instruct.errors import InputError
from ja_instruct.pipelines.data_filtering.pairs import (
    describe_bad_records,
    extract_fields,
    replace_columns,
    set_bad_records_aside,
)

turns = st.none() | st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "", None]),
        "content": st.none() | st.text("問答𠮷\u2028", max_size=3),
    }
)
conversations = st.lists(st.none() | st.lists(turns, max_size=4), max_size=5)
TURN = pa.struct({"role": pa.string(), "content": pa.string()})


@given(conversations, st.integers(0, 5), st.sampled_from([pa.list_, pa.large_list]))
def test_fields_match_a_plain_loop(talks: list[list[Any] | None], cut: int, list_type: Any) -> None:
    array = pa.array(talks, list_type(TURN))
    chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)], array.type)
    records = [{"conversations": list(filter(None, talk or []))} for talk in talks]
    expected = [
        {"instruction": first_turn(record, "user"), "response": first_turn(record, "assistant")}
        for record in records
    ]
    assert extract_fields(chunked, 1).to_pylist() == expected
    assert extract_fields(chunked.slice(1), 1).to_pylist() == expected[1:]


def test_turns_behind_a_null_conversation_are_not_read() -> None:
    turn = pa.array([{"role": "user", "content": "隠"}, {"role": "user", "content": "見"}], TURN)
    hidden = pa.ListArray.from_arrays([0, 1, 2], turn, mask=pa.array([True, False]))
    fields = extract_fields(pa.chunked_array([hidden]), 1)
    assert fields["instruction"].to_pylist() == ["", "見"]


def test_turns_may_have_other_keys_and_large_strings() -> None:
    kind = pa.list_(pa.struct({"n": pa.int64(), "content": pa.large_string(), "role": pa.string()}))
    array = pa.array([[{"n": 1, "content": "問", "role": "user"}]], kind)
    fields = extract_fields(pa.chunked_array([array]), 1)
    assert fields.to_pylist() == [{"instruction": "問", "response": ""}]
    assert fields.schema.field("instruction").type == pa.string()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.list_(pa.string()), pa.list_(pa.struct({"role": pa.string()}))]
)
def test_null_conversations_of_other_types_are_empty(kind: pa.DataType) -> None:
    fields = extract_fields(pa.chunked_array([pa.nulls(2, kind)]), 1)
    assert fields.to_pylist() == [{"instruction": "", "response": ""}] * 2


def test_the_first_wrong_record_is_named() -> None:
    array = pa.array([None, None, "問と答"])
    with pytest.raises(InputError, match=r"'raw_conversations', record 43: .* list of turns"):
        extract_fields(pa.chunked_array([array]), 41)


def test_columns_are_replaced_without_a_copy() -> None:
    features = Features({"a": Value("int32"), "b": Value("string")})
    data = Dataset.from_dict({"a": [1, 2], "b": ["x", "y"]}, features=features)
    new = Dataset.from_dict({"b": ["一", "二"], "c": [True, False]})
    replaced = replace_columns(data, new)
    assert replaced.column_names == ["b", "c", "a"]
    assert replaced.features["a"] == Value("int32")
    assert replaced["b"][:] == ["一", "二"]
    old = data.data.table.column("a").chunk(0).buffers()[1].address
    assert replaced.data.table.column("a").chunk(0).buffers()[1].address == old


def test_the_error_lists_five_bad_records() -> None:
    bad = [{"source": "a.jsonl", "line": line, "error": "not JSON"} for line in range(1, 9)]
    message = describe_bad_records(bad, 3)
    assert "8 records cannot be read, more than data_filtering.bad_records_max = 3" in message
    assert [line for line in range(1, 9) if f"a.jsonl:{line}:" in message] == [1, 2, 3, 4, 5]
    assert "and 3 more" in message
    assert "more\n" not in describe_bad_records(bad[:5], 3)


def test_an_empty_column_of_bad_records_is_removed() -> None:
    kind = dict.fromkeys(("source", "error", "text"), Value("string")) | {"line": Value("int64")}
    features = Features({"id": Value("int64"), "bad_record": kind})
    data = Dataset.from_dict({"id": [1], "bad_record": [None]}, features=features)
    good, bad = set_bad_records_aside(data, 0)
    assert good.to_list() == [{"id": 1}]
    assert len(bad) == 0
