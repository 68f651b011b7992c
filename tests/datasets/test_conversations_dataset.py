import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from ja_instruct.datasets import ConversationsDataset
from ja_instruct.errors import InputError

TURNS = [
    {"role": "user", "content": "日本の首都は?"},
    {"role": "assistant", "content": "東京です。"},
]
OTHER = [{"role": "user", "content": "空は何色?"}, {"role": "assistant", "content": "青です。"}]


def jsonl(path, *records):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    path.write_text("\n".join(lines), "utf-8")
    return str(path)


def load(*sources):
    return ConversationsDataset(sources=list(sources)).load()


def test_real_conversations(shared_data):
    paths = [
        shared_data / name / "conversations.jsonl" for name in ("dolly_ja", "model_answers_ja")
    ]
    if not all(path.exists() for path in paths):
        pytest.skip(f"no conversations at {shared_data}")
    lines = [line for path in paths for line in path.read_bytes().split(b"\n") if line]
    loaded = load({"files": [str(path) for path in paths]})
    assert loaded.remove_columns("source").to_list() == [json.loads(line) for line in lines]


def refusal(*sources, method="load"):
    with pytest.raises(InputError) as caught:
        getattr(ConversationsDataset(sources=list(sources)), method)()
    return str(caught.value)


def test_one_file_is_left_as_it_is(tmp_path):
    records = [{"id": 1, "conversations": TURNS}, {"id": 2, "conversations": []}]
    loaded = load({"files": jsonl(tmp_path / "a.jsonl", *records)})
    assert loaded.to_list() == records
    assert loaded.column_names == ["id", "conversations"]


def test_several_sources_in_order(tmp_path):
    second = jsonl(tmp_path / "b.jsonl", {"conversations": OTHER, "score": 0.5})
    first = jsonl(tmp_path / "a.jsonl", {"conversations": TURNS, "score": 1})
    third = str(tmp_path / "c.parquet")
    pair = {"tag": "x", "q": "空は何色?", "a": "青です。"}
    parquet.write_table(pa.Table.from_pylist([pair]), third)
    loaded = load(
        {"files": third, "columns": {"instruction": "q", "response": "a"}},
        {"files": str(tmp_path / "*.jsonl")},
    )
    assert loaded.to_list() == [
        {"tag": "x", "conversations": OTHER, "source": third, "score": None},
        {"tag": None, "conversations": TURNS, "source": first, "score": 1.0},
        {"tag": None, "conversations": OTHER, "source": second, "score": 0.5},
    ]


def test_column_source_of_a_file_is_kept(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", {"conversations": TURNS})
    second = jsonl(tmp_path / "b.jsonl", {"conversations": OTHER, "source": "wiki"})
    assert load({"files": [first, second]})["source"][:] == [None, "wiki"]


def test_local_folder_of_a_data_set(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "train.jsonl", {"conversations": TURNS, "meta": "x"})
    jsonl(folder / "test.jsonl", {"conversations": OTHER, "meta": "y"})
    loaded = load({"hub": str(folder), "split": "train"})
    assert loaded.to_list() == [{"conversations": TURNS, "meta": "x"}]
    assert "has 2 splits" in refusal({"hub": str(folder)})
    ConversationsDataset(sources=[{"hub": str(folder)}]).check_records()


def test_bad_records(tmp_path):
    good = {"q": "空は何色?", "a": "青です。"}
    pairs = jsonl(tmp_path / "a.jsonl", good, "{", {"q": 3, "a": "x"})
    turns = jsonl(tmp_path / "b.jsonl", {"conversations": [{"role": "user", "content": ["x"]}]})
    columns = {"instruction": "q", "response": "a"}
    loaded = load({"files": pairs, "columns": columns}, {"files": turns})
    assert loaded["conversations"][:] == [OTHER, None, None, None]
    assert loaded["source"][:] == [pairs, pairs, pairs, turns]
    bad = [(row["source"], row["line"]) for row in loaded["bad_record"][1:]]
    assert bad == [(pairs, 2), (pairs, 3), (turns, 1)]
    assert loaded["bad_record"][0] is None
    error = loaded["bad_record"][3]["error"]
    assert "'conversations[].content' is a list of text where text is expected" in error


def test_preview(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({"n": n, "conversations": TURNS} for n in range(9)))
    preview = ConversationsDataset(sources=[{"files": path}]).preview(nrows=2)
    assert preview["columns"] == ["n", "conversations"]
    assert [row[0] for row in preview["data"]] == [0, 1]
    assert [json.loads(row[1]) for row in preview["data"]] == [TURNS, TURNS]


def test_exists(tmp_path):
    dataset = ConversationsDataset(sources=[{"files": str(tmp_path / "*.jsonl")}])
    assert not dataset.exists()
    jsonl(tmp_path / "a.jsonl")
    assert dataset.exists()


def test_bad_records_up_to_a_limit(tmp_path):
    records = [{"conversations": TURNS}, *["{"] * 4]
    first = jsonl(tmp_path / "a.jsonl", *records)
    second = jsonl(tmp_path / "b.jsonl", *records)
    dataset = ConversationsDataset(sources=[{"files": [first, second]}])
    dataset.check_records(bad_records_max=8)
    with pytest.raises(InputError) as caught:
        dataset.check_records(bad_records_max=7)
    message = str(caught.value)
    assert message.startswith(f"8 bad record(s), 7 allowed: {first}:2: not JSON (")
    assert f"{second}:2: " in message
    assert f"{second}:3: " not in message
    assert "; and 3 more. Repair or remove them, or raise data_filtering.bad" in message
    with pytest.raises(InputError, match=r"8 bad record\(s\), 0 allowed"):
        dataset.check_records()
    assert len(dataset.load()) == 10


def test_check_requires_the_data_set_on_the_hub():
    message = refusal({"hub": "owner/name"}, method="check_records")
    assert "dataset 'owner/name' cannot be reached (offline mode is on)" in message


@pytest.mark.parametrize("method", ["load", "check_records"])
def test_mistakes_are_reported_by_load_and_check(tmp_path, method):
    path = jsonl(tmp_path / "a.jsonl", {"messages": TURNS})
    assert "source 2: 'file' is unknown" in refusal({"files": path}, {"file": path}, method=method)
    assert f"source 1: {path}: has no column" in refusal({"files": path}, method=method)


def test_empty_files_have_no_records(tmp_path):
    files = [jsonl(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl")]
    assert load({"files": files}).num_rows == 0
    assert ConversationsDataset(sources=[{"files": files}]).preview()["data"] == []
