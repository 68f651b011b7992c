"""Columns that are replaced, and records that could not be read."""

from datasets import Dataset, Features, Value

from ja_instruct.pipelines.data_filtering.pairs import (
    describe_bad_records,
    replace_columns,
    set_bad_records_aside,
)


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
