import json

import pytest
from datasets import Dataset

from ja_instruct.datasets import JSONLinesDataset
from ja_instruct.errors import InputError

RECORDS = [
    {"id": 1, "input": "U+2028\u2028とU+2029\u2029とU+0085\x85を含む", "output": "改行\nとタブ\t"},
    {"id": 2, "input": '引用符"と\\円記号', "output": "https://example.com/a/b"},
    {"id": 3, "input": "絵文字😀と結合文字か\u3099", "output": ""},
]


def write(path, *lines):
    path.write_bytes("\n".join(lines).encode())
    return JSONLinesDataset(filepath=path)


def test_round_trip(tmp_path):
    dataset = JSONLinesDataset(filepath=tmp_path / "deep" / "pairs.jsonl")
    assert not dataset.exists()
    dataset.save(Dataset.from_list(RECORDS))
    assert dataset.exists()
    assert dataset.load().to_list() == RECORDS


def test_written_bytes(tmp_path):
    path = tmp_path / "pairs.jsonl"
    JSONLinesDataset(filepath=path).save(Dataset.from_list(RECORDS))
    written = path.read_bytes()
    assert written.count(b"\n") == len(RECORDS)
    assert written.endswith(b"\n")
    assert b"\r" not in written
    lines = written.decode("utf-8").split("\n")
    assert lines[0] == (
        '{"id": 1, "input": "U+2028\u2028とU+2029\u2029とU+0085\x85を含む", '
        '"output": "改行\\nとタブ\\t"}'
    )
    assert lines[1] == (
        '{"id": 2, "input": "引用符\\"と\\\\円記号", "output": "https://example.com/a/b"}'
    )


def test_line_separators_inside_a_record_do_not_cut_it(tmp_path):
    dataset = write(tmp_path / "pairs.jsonl", '{"input": "一\u2028二\x85三"}', '{"input": "四"}')
    assert dataset.load()["input"][:] == ["一\u2028二\x85三", "四"]


def test_windows_line_ends_and_blank_lines(tmp_path):
    dataset = write(tmp_path / "pairs.jsonl", '{"input": "一"}\r', "", "  \r", '{"input": "二"}\r')
    assert dataset.load()["input"][:] == ["一", "二"]


def test_nested_records(tmp_path):
    turns = [{"role": "user", "content": "こんにちは"}, {"role": "assistant", "content": "はい"}]
    dataset = JSONLinesDataset(filepath=tmp_path / "conversations.jsonl")
    dataset.save(Dataset.from_list([{"conversations": turns}, {"conversations": []}]))
    assert dataset.load()["conversations"][:] == [turns, []]


def test_column_that_appears_later(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"task_id": 0}', '{"task_id": 1, "output": "答"}')
    assert dataset.load().to_list() == [
        {"task_id": 0, "output": None},
        {"task_id": 1, "output": "答"},
    ]


def test_columns_in_order_of_appearance(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"b": 1, "a": 2}', '{"c": 3, "a": 4}')
    assert dataset.load().column_names == ["b", "a", "c"]


def test_empty_dataset_is_a_complete_file(tmp_path):
    dataset = JSONLinesDataset(filepath=tmp_path / "rejected.jsonl")
    dataset.save(Dataset.from_list([]))
    assert dataset.exists()
    assert (tmp_path / "rejected.jsonl").read_bytes() == b""
    assert len(dataset.load()) == 0


def test_empty_file_will_do_where_no_column_is_needed(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.touch()
    dataset = JSONLinesDataset(filepath=path)
    dataset.check()
    with pytest.raises(InputError, match=r"tasks\.jsonl: holds no records"):
        dataset.check(columns=("task_id", "input"))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"tasks\.jsonl: no such file"):
        JSONLinesDataset(filepath=tmp_path / "tasks.jsonl").check()


@pytest.mark.parametrize("read", ["load", "check"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "途中で', r"tasks\.jsonl:3: not JSON \(.*at column"),
        ("['単引用符']", r"tasks\.jsonl:3: not JSON"),
        ('["リスト"]', r"tasks\.jsonl:3: a list where a JSON object is expected"),
        ("null", r"tasks\.jsonl:3: a NoneType where a JSON object is expected"),
    ],
)
def test_malformed_line_is_named(tmp_path, line, message, read):
    dataset = write(tmp_path / "tasks.jsonl", '{"input": "一"}', "", line, '{"input": "二"}')
    with pytest.raises(InputError, match=message):
        getattr(dataset, read)()


def test_other_encoding_is_named(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_bytes('{"input": "一"}\n'.encode() + '{"input": "日本語"}\n'.encode("cp932"))
    with pytest.raises(InputError, match=r"tasks\.jsonl:2: not UTF-8 .*iconv"):
        JSONLinesDataset(filepath=path).load()


def test_missing_column_is_named(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"task_id": 0, "input": "一"}', '{"task_id": 1}')
    dataset.check(columns=("task_id",))
    with pytest.raises(InputError, match=r"record 2 lacks input; it has task_id"):
        dataset.check(columns=("task_id", "input"))


def test_text_that_is_none_is_named(tmp_path):
    dataset = write(tmp_path / "qa.jsonl", '{"input": "一", "output": "二"}', '{"input": null}')
    dataset.check(columns=())
    with pytest.raises(InputError, match=r"qa\.jsonl: record 2: input must be text, not null"):
        dataset.check(columns=("input",))


def test_task_ids_that_repeat_are_named(tmp_path):
    lines = [json.dumps({"task_id": number}) for number in (3, 1, 3)]
    dataset = write(tmp_path / "tasks.jsonl", *lines)
    with pytest.raises(InputError, match=r"records 1 and 3 have the same task_id 3"):
        dataset.check(columns=("task_id",))


def test_columns_of_two_types(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"task_id": 0}', '{"task_id": "一"}')
    with pytest.raises(InputError, match=r"tasks\.jsonl: the records disagree on the type"):
        dataset.load()


def test_interrupted_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    dataset = JSONLinesDataset(filepath=path)
    dataset.save(Dataset.from_list(RECORDS))
    before = path.read_bytes()

    def records():
        yield {"id": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.save(records())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_preview_shows_the_first_records(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", *(json.dumps({"task_id": i}) for i in range(9)))
    assert dataset.preview(nrows=2)["data"] == [[0], [1]]
