import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ja_instruct.errors import InputError
from ja_instruct.tables.arrow import collect
from ja_instruct.tables.conversation_sources import find_places
from ja_instruct.tables.conversations import SOURCE, read_places
from ja_instruct.tables.turns import decode_turns

TURNS = [
    {"role": "user", "content": "日本の首都は?"},
    {"role": "assistant", "content": "東京です。"},
]
OTHER = [{"role": "user", "content": "空は何色?"}, {"role": "assistant", "content": "青です。"}]
SHARED_GPT = [{"from": "human", "value": "日本の首都は?"}, {"from": "gpt", "value": "東京です。"}]


def write(path, *records):
    """Write the records as the suffix says; return the path as text."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        data = "\n".join(map(json.dumps, records)).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.fixture(params=["a.jsonl", "a.ndjson.gz", "a.parquet"])
def path(request, tmp_path):
    return tmp_path / request.param


def load(*sources):
    return collect(read_places(find_places(list(sources)))).remove_columns(SOURCE)


def refusal(*sources):
    with pytest.raises(InputError) as caught:
        load(*sources)
    return str(caught.value)


def test_other_names(path):
    system = {"from": "system", "value": "丁寧に"}
    source = {
        "files": write(path, {"messages": [system, *SHARED_GPT], "meta": {"x": 1}}),
        "columns": {"conversations": "messages"},
        "turn_keys": {"role": "from", "content": "value"},
        "roles": {"user": "human", "assistant": "gpt"},
        "drop_columns": ["meta"],
    }
    turns = [{"role": "system", "content": "丁寧に"}, *TURNS]
    assert load(source).to_list() == [{"conversations": turns}]


def test_two_columns(path):
    first = {"n": 1, "question": "日本の首都は?", "answer": "東京です。"}
    second = {"n": 2, "question": "空は何色?", "answer": None}
    columns = {"instruction": "question", "response": "answer"}
    unanswered = [OTHER[0], {"role": "assistant", "content": None}]
    assert load({"files": write(path, first, second), "columns": columns}).to_list() == [
        {"n": 1, "conversations": TURNS},
        {"n": 2, "conversations": unanswered},
    ]


def test_keys_of_turns_are_kept(tmp_path):
    turns = [{"content": "はい", "name": "花子", "role": "user", "weight": 1}]
    files = [write(tmp_path / name, {"conversations": turns}) for name in ("a.jsonl", "b.parquet")]
    loaded = load({"files": files})
    assert loaded["conversations"][:] == [turns, turns]


def test_encoded_and_sliced_arrow_types(tmp_path):
    path = tmp_path / "a.parquet"
    text = pa.dictionary(pa.int32(), pa.string())
    type_ = pa.large_list(pa.struct([("role", text), ("content", pa.large_string())]))
    lists = [None, TURNS, [], OTHER, [None]] * 900
    column = pa.array(lists, pa.list_(pa.struct([("role", text), ("content", pa.string())])))
    tags = pa.array(["x", "y", "x"] * 1500)
    columns = {"conversations": column.cast(type_), "tag": tags.dictionary_encode()}
    parquet.write_table(pa.table({**columns, "long": tags.cast(pa.large_string())}), path)
    loaded = load({"files": str(path), "roles": {"asker": "user"}})
    asked = [{"role": "asker", "content": "日本の首都は?"}, TURNS[1]]
    again = [{"role": "asker", "content": "空は何色?"}, OTHER[1]]
    assert loaded["conversations"][:] == [None, asked, [], again, [None]] * 900
    assert loaded["tag"][:] == loaded["long"][:] == tags.to_pylist()
    assert {loaded.features[name].dtype for name in ("tag", "long")} == {"string"}


def test_text_in_parquet_that_is_not_utf8(tmp_path):
    column = pa.array([b"x", b"\xff\xfe", b"y"]).view(pa.string())
    columns = {"q": column, "a": pa.array(["1", "2", "3"])}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    loaded = load({"files": path, "columns": {"instruction": "q", "response": "a"}})
    contents = [turns and turns[0]["content"] for turns in loaded["conversations"]]
    assert contents == ["x", None, "y"]
    assert loaded["bad_record"][1]["line"] == 2


def test_empty_file(tmp_path):
    empty = write(tmp_path / "a.jsonl")
    assert list(read_places(find_places([{"files": empty, "columns": {"x": "y"}}]))) == []
    other = write(tmp_path / "b.jsonl", {"conversations": TURNS})
    assert load({"files": [empty, other]})["conversations"][:] == [TURNS]


def test_missing_column(path):
    file = write(path, {"messages": TURNS, "id": 1})
    message = refusal({"files": file})
    assert f"source 1: {path}: has no column 'conversations'; it has messages, id" in message
    assert "columns: {conversations: …}" in message
    wrong = {"files": file, "columns": {"conversations": "mesages"}, "drop_columns": ["ids"]}
    assert "no column 'mesages' and no 'ids'; it has messages, id. Correct" in refusal(wrong)


def test_other_keys_of_turns_without_turn_keys(path):
    message = refusal({"files": write(path, {"conversations": SHARED_GPT})})
    assert f"source 1: {path}: " in message
    assert "from, value" in message
    assert "turn_keys: {role: …, content: …}" in message


def test_other_roles_without_roles(path):
    turns = [{"role": "human", "content": "はい"}]
    message = refusal({"files": write(path, {"conversations": turns})})
    assert "no turn has the role 'user' or 'assistant'; the roles are human. Name" in message


def test_columns_of_several_types(tmp_path):
    """Neither within a file nor between files does another column make a record bad."""
    values = ["web", {"origin": "book", "page": 3}, 5, ["x"], 2**64, None]
    turns = [{**turn, "weight": value} for turn in TURNS for value in (1, "x")]
    records = [{"conversations": turns, "meta": value} for value in values]
    files = [
        write(tmp_path / "a.jsonl", *records[:3]),
        write(tmp_path / "b.jsonl", *records[3:5]),
        write(tmp_path / "c.parquet", {"conversations": TURNS, "meta": [b"x"]}),
    ]
    loaded = load({"files": files})
    assert "bad_record" not in loaded.column_names
    assert loaded["meta"][:] == [*values[:4], str(2**64), ["eA=="]]
    assert loaded["conversations"][:5] == [turns] * 5
    dropped = load({"files": files, "drop_columns": ["meta"]})
    assert dropped.to_list()[:5] == [{"conversations": turns}] * 5


def test_turns_that_datasets_keeps_as_json_text():
    turns = [
        [{**TURNS[0], "n": 1}, TURNS[1]],
        [{"content": "道具", "role": "assistant", "tool_calls": [{"arguments": {"q": "x"}}]}],
        [{"content": None, "role": "assistant", "tool_calls": [{"arguments": "{}"}]}],
    ]
    for text in ("column", "turn", "content"):
        column = as_text_at(text, turns)
        rows = decode_turns(pa.chunked_array([column])).to_pylist()
        mains = [[(turn["role"], turn["content"]) for turn in row] for row in rows]
        assert mains == [[(turn["role"], turn["content"]) for turn in row] for row in turns]
    with pytest.raises(InputError, match=r"record 2: 'conversations\[\]\.content' is a list"):
        decode_turns(pa.chunked_array([as_text_at("turn", [TURNS, [{"content": ["x"]}]])]))


def as_text_at(place, rows):
    """Return conversations with the column, its turns or their contents as JSON text."""
    if place == "column":
        return pa.array(map(json.dumps, rows), pa.json_())
    turns = [turn for row in rows for turn in row]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    texts = pa.array(map(json.dumps, turns), pa.json_())
    if place == "content":
        contents = pa.array([json.dumps(turn["content"]) for turn in turns], pa.json_())
        roles = pa.array([turn["role"] for turn in turns])
        texts = pa.StructArray.from_arrays([contents, roles], names=["content", "role"])
    return pa.ListArray.from_arrays(offsets, texts)


def test_column_renamed_to_an_existing_one(tmp_path):
    path = write(tmp_path / "a.jsonl", {"conversations": TURNS, "messages": TURNS})
    source = {"files": path, "columns": {"conversations": "messages"}}
    message = refusal(source)
    assert f"source 1: {path}: has a column 'conversations' beside 'messages'" in message
    assert load({**source, "drop_columns": ["conversations"]}).num_rows == 1


def test_columns_of_other_types(tmp_path):
    path = write(tmp_path / "a.parquet", {"conversations": "text"})
    assert f"{path}: holds string, not lists of turns" in refusal({"files": path})
    numbers = write(tmp_path / "b.parquet", {"q": 1, "a": "x"})
    source = {"files": numbers, "columns": {"instruction": "q", "response": "a"}}
    assert "its column for 'instruction' holds int64, not text" in refusal(source)


def test_file_that_is_not_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    assert "a.parquet: cannot be read as Parquet" in refusal({"files": str(tmp_path / "a.parquet")})
