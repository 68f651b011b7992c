import gzip
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
SHARED_GPT = [{"from": "human", "value": "日本の首都は?"}, {"from": "gpt", "value": "東京です。"}]


def jsonl(path, *records):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    data = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def table(path, *records):
    parquet.write_table(pa.Table.from_pylist(list(records)), path)
    return str(path)


def load(*sources):
    return ConversationsDataset(sources=list(sources)).load()


def refusal(*sources, method="load"):
    with pytest.raises(InputError) as caught:
        getattr(ConversationsDataset(sources=list(sources)), method)()
    return str(caught.value)


class TestLoading:
    def test_one_file_is_left_as_it_is(self, tmp_path):
        records = [{"id": 1, "conversations": TURNS}, {"id": 2, "conversations": []}]
        loaded = load({"files": jsonl(tmp_path / "a.jsonl", *records)})
        assert loaded.to_list() == records
        assert loaded.column_names == ["id", "conversations"]

    @pytest.mark.parametrize("write", [jsonl, table])
    def test_other_names(self, tmp_path, write):
        suffix = ".jsonl.gz" if write is jsonl else ".parquet"
        system = {"from": "system", "value": "丁寧に"}
        path = write(tmp_path / f"a{suffix}", {"messages": [system, *SHARED_GPT], "meta": {"x": 1}})
        loaded = load(
            {
                "files": path,
                "columns": {"conversations": "messages"},
                "turn_keys": {"role": "from", "content": "value"},
                "roles": {"user": "human", "assistant": "gpt"},
                "drop_columns": ["meta"],
            }
        )
        turns = [{"role": "system", "content": "丁寧に"}, *TURNS]
        assert loaded.to_list() == [{"conversations": turns}]

    @pytest.mark.parametrize("write", [jsonl, table])
    def test_two_columns(self, tmp_path, write):
        suffix = ".jsonl" if write is jsonl else ".parquet"
        path = write(
            tmp_path / f"qa{suffix}",
            {"n": 1, "question": "日本の首都は?", "answer": "東京です。"},
            {"n": 2, "question": "空は何色?", "answer": None},
        )
        columns = {"instruction": "question", "response": "answer"}
        unanswered = [OTHER[0], {"role": "assistant", "content": None}]
        loaded = load({"files": path, "columns": columns})
        assert loaded.to_list() == [
            {"n": 1, "conversations": TURNS},
            {"n": 2, "conversations": unanswered},
        ]

    def test_several_sources_in_order(self, tmp_path):
        second = jsonl(tmp_path / "b.jsonl", {"conversations": OTHER, "score": 0.5})
        first = jsonl(tmp_path / "a.jsonl", {"conversations": TURNS, "score": 1})
        third = table(tmp_path / "c.parquet", {"tag": "x", "q": "空は何色?", "a": "青です。"})
        loaded = load(
            {"files": third, "columns": {"instruction": "q", "response": "a"}},
            {"files": str(tmp_path / "*.jsonl")},
        )
        assert loaded.to_list() == [
            {"tag": "x", "conversations": OTHER, "source": third, "score": None},
            {"tag": None, "conversations": TURNS, "source": first, "score": 1.0},
            {"tag": None, "conversations": OTHER, "source": second, "score": 0.5},
        ]

    def test_sources_of_their_own(self, tmp_path):
        first = jsonl(tmp_path / "a.jsonl", {"conversations": TURNS})
        second = jsonl(tmp_path / "b.jsonl", {"conversations": OTHER, "source": "wiki"})
        assert load({"files": [first, second]})["source"][:] == [None, "wiki"]

    def test_keys_of_turns_are_kept(self, tmp_path):
        turns = [{"content": "はい", "name": "花子", "role": "user", "weight": 1}]
        jsonl(tmp_path / "a.jsonl", {"conversations": turns})
        table(tmp_path / "b.parquet", {"conversations": turns})
        loaded = load({"files": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")]})
        assert loaded["conversations"][:] == [turns, turns]

    def test_encoded_and_sliced_arrow_types(self, tmp_path):
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

    def test_local_folder_of_a_data_set(self, tmp_path):
        folder = tmp_path / "set"
        folder.mkdir()
        jsonl(folder / "train.jsonl", {"conversations": TURNS, "meta": "x"})
        jsonl(folder / "test.jsonl", {"conversations": OTHER, "meta": "y"})
        loaded = load({"hub": str(folder), "split": "train"})
        assert loaded.to_list() == [{"conversations": TURNS, "meta": "x"}]
        assert "has 2 splits" in refusal({"hub": str(folder)})
        ConversationsDataset(sources=[{"hub": str(folder)}]).check_records()

    def test_bad_records(self, tmp_path):
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
        told = loaded["bad_record"][3]["error"]
        assert "'conversations[].content' is a list of text where text is expected" in told

    def test_text_in_parquet_that_is_not_utf8(self, tmp_path):
        column = pa.array([b"x", b"\xff\xfe", b"y"]).view(pa.string())
        columns = {"q": column, "a": pa.array(["1", "2", "3"])}
        parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
        path = str(tmp_path / "a.parquet")
        loaded = load({"files": path, "columns": {"instruction": "q", "response": "a"}})
        contents = [turns and turns[0]["content"] for turns in loaded["conversations"]]
        assert contents == ["x", None, "y"]
        assert loaded["bad_record"][1]["line"] == 2

    def test_nothing_in_a_file(self, tmp_path):
        path = jsonl(tmp_path / "a.jsonl")
        assert len(load({"files": path, "columns": {"conversations": "messages"}})) == 0
        other = jsonl(tmp_path / "b.jsonl", {"conversations": TURNS})
        assert load({"files": [path, other]})["conversations"][:] == [TURNS]

    def test_preview(self, tmp_path):
        path = jsonl(tmp_path / "a.jsonl", *({"n": n, "conversations": TURNS} for n in range(9)))
        preview = ConversationsDataset(sources=[{"files": path}]).preview(nrows=2)
        assert preview["columns"] == ["n", "conversations"]
        assert [row[0] for row in preview["data"]] == [0, 1]
        assert [json.loads(row[1]) for row in preview["data"]] == [TURNS, TURNS]

    def test_exists(self, tmp_path):
        dataset = ConversationsDataset(sources=[{"files": str(tmp_path / "*.jsonl")}])
        assert not dataset.exists()
        jsonl(tmp_path / "a.jsonl")
        assert dataset.exists()

    def test_real_conversations(self, shared_data):
        paths = [
            shared_data / name / "conversations.jsonl" for name in ("dolly_ja", "model_answers_ja")
        ]
        if not all(path.exists() for path in paths):
            pytest.skip(f"no conversations at {shared_data}")
        lines = [line for path in paths for line in path.read_bytes().split(b"\n") if line]
        loaded = load({"files": [str(path) for path in paths]})
        assert loaded.remove_columns("source").to_list() == [json.loads(line) for line in lines]


class TestMistakes:
    @pytest.mark.parametrize("method", ["load", "check_records"])
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ({"file": "a.jsonl"}, "source 2: 'file' is unknown; did you mean 'files'?"),
            (
                {"zzz": 1, "hub": "a/b"},
                "source 2: 'zzz' is unknown; the keys are hub, name, split,",
            ),
            ({}, "source 2: give either 'hub: owner/name' or 'files: path/*.jsonl'"),
            ({"hub": "a/b", "files": "c.jsonl"}, "source 2: give either 'hub: owner/name' or"),
            (
                {"files": "c.jsonl", "split": "train"},
                "source 2: split: valid only for a data set of the",
            ),
            ({"hub": "a/b", "columns": ["x"]}, "source 2: 'columns' = ['x']: Input should be a"),
            ({"hub": "a/b", "columns": {"response": "a"}}, "both 'instruction' and 'response'"),
            (
                {"hub": "a/b", "columns": {"instruction": "q", "response": "q"}},
                "source 2: columns: 'q' is given twice",
            ),
            (
                {
                    "hub": "a/b",
                    "columns": {"instruction": "q", "response": "a"},
                    "roles": {"x": "y"},
                },
                "source 2: roles, turn_keys: valid only with turns, not with columns of",
            ),
            ({"files": "nowhere/*.jsonl"}, "source 2: no file matches 'nowhere/*.jsonl'; put one"),
            ("a.jsonl", "source 2: Input should be a valid dictionary"),
        ],
    )
    def test_configuration(self, tmp_path, source, message, method):
        good = {"files": jsonl(tmp_path / "a.jsonl", {"conversations": TURNS})}
        assert message in refusal(good, source, method=method)

    def test_every_mistake_is_told(self):
        message = refusal({"file": "a.jsonl"}, {}, {"hub": "a/b", "spilt": "train"})
        assert all(f"source {number}: " in message for number in (1, 2, 3))
        assert "did you mean 'split'?" in message

    @pytest.mark.parametrize("sources", [[], "a.jsonl", {"files": "a.jsonl"}])
    def test_no_list(self, sources):
        with pytest.raises(InputError, match="sources: give a list, each"):
            ConversationsDataset(sources=sources).load()

    def test_unknown_suffix(self, tmp_path):
        (tmp_path / "a.csv").touch()
        message = refusal({"files": str(tmp_path / "*")})
        assert f"source 1: {tmp_path}/a.csv: unknown kind of file; rename or convert" in message
        assert ".jsonl.gz" in message

    @pytest.mark.parametrize("write", [jsonl, table])
    @pytest.mark.parametrize("method", ["load", "check_records"])
    def test_column_that_is_not_there(self, tmp_path, write, method):
        suffix = ".jsonl" if write is jsonl else ".parquet"
        path = write(tmp_path / f"a{suffix}", {"messages": TURNS, "id": 1})
        message = refusal({"files": path}, method=method)
        assert f"source 1: {path}: has no column 'conversations'; it has messages, id" in message
        assert "columns: {conversations: …}" in message
        wrong = {"files": path, "columns": {"conversations": "mesages"}, "drop_columns": ["ids"]}
        message = refusal(wrong, method=method)
        assert "has no column 'mesages' and no 'ids'; it has messages, id. Correct" in message

    @pytest.mark.parametrize("write", [jsonl, table])
    def test_keys_of_turns_that_nobody_told(self, tmp_path, write):
        suffix = ".jsonl" if write is jsonl else ".parquet"
        path = write(tmp_path / f"a{suffix}", {"conversations": SHARED_GPT})
        message = refusal({"files": path})
        assert f"source 1: {path}: " in message
        assert "from, value" in message
        assert "turn_keys: {role: …, content: …}" in message

    def test_roles_that_nobody_told(self, tmp_path):
        turns = [{"role": "human", "content": "はい"}]
        message = refusal({"files": jsonl(tmp_path / "a.jsonl", {"conversations": turns})})
        assert "no turn has the role 'user' or 'assistant'; the roles are human. Name" in message

    def test_clashing_columns(self, tmp_path):
        first = jsonl(tmp_path / "a.jsonl", {"conversations": TURNS, "score": 1})
        second = jsonl(tmp_path / "b.jsonl", {"conversations": TURNS, "score": "high"})
        message = refusal({"files": first}, {"files": second})
        assert f"column 'score' is int64 in source 1: {first}, but string in source 2" in message
        assert f"{second}; rename one by 'columns: {{other_name: score}}'" in message
        assert "'drop_columns: [score]'" in message
        renamed = {"files": second, "columns": {"grade": "score"}}
        assert load({"files": first}, renamed)["grade"][:] == [None, "high"]
        assert load({"files": first}, {"files": second, "drop_columns": ["score"]}).num_rows == 2

    def test_name_that_is_taken(self, tmp_path):
        path = jsonl(tmp_path / "a.jsonl", {"conversations": TURNS, "messages": TURNS})
        source = {"files": path, "columns": {"conversations": "messages"}}
        message = refusal(source)
        assert f"source 1: {path}: has a column 'conversations' beside 'messages'" in message
        assert load({**source, "drop_columns": ["conversations"]}).num_rows == 1

    def test_column_of_another_type(self, tmp_path):
        path = table(tmp_path / "a.parquet", {"conversations": "text"})
        assert f"{path}: holds string, not lists of turns" in refusal({"files": path})
        numbers = table(tmp_path / "b.parquet", {"q": 1, "a": "x"})
        source = {"files": numbers, "columns": {"instruction": "q", "response": "a"}}
        assert "its column for 'instruction' holds int64, not text" in refusal(source)

    def test_file_that_is_no_parquet(self, tmp_path):
        (tmp_path / "a.parquet").write_text("no")
        assert "a.parquet: cannot be read as Parquet" in refusal(
            {"files": str(tmp_path / "a.parquet")}
        )


class TestCheck:
    def test_bad_records_up_to_a_limit(self, tmp_path):
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

    def test_hub_is_asked(self):
        message = refusal({"hub": "owner/name"}, method="check_records")
        assert "dataset 'owner/name' cannot be reached (offline mode is on)" in message
