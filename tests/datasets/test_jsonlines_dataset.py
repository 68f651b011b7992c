import gzip
import json
import resource

import pytest
from datasets import Dataset, config
from kedro.io import DatasetError

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


def test_empty_dataset_is_a_complete_file(tmp_path):
    dataset = JSONLinesDataset(filepath=tmp_path / "rejected.jsonl")
    dataset.save(Dataset.from_list([]))
    assert dataset.exists()
    assert (tmp_path / "rejected.jsonl").read_bytes() == b""
    assert len(dataset.load()) == 0


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        ([], "task_id input", "holds no records"),
        (
            ['{"task_id": 0, "input": "一"}', '{"task_id": 1}'],
            "task_id input",
            "record 2 lacks input; it has task_id",
        ),
        (['{"input": "一"}', '{"input": null}'], "input", "record 2: input must be text, not null"),
        (
            ['{"task_id": 3}', '{"task_id": 1}', '{"task_id": 3}'],
            "task_id",
            "records 1 and 3 have the same task_id 3",
        ),
        (['{"task_id": 0, "note": null}'], "task_id note", None),
    ],
)
def test_required_columns(tmp_path, lines, columns, message):
    dataset = write(tmp_path / "tasks.jsonl", *lines)
    dataset.check_records()
    if message is None:
        dataset.check_records(columns.split())
    else:
        with pytest.raises(InputError, match=rf"tasks\.jsonl: {message}"):
            dataset.check_records(columns.split())


def test_task_ids_of_several_types(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"task_id": 0}', '{"task_id": "a"}')
    with pytest.raises(InputError, match=r"tasks\.jsonl:2: .*'task_id' is text where a whole"):
        dataset.load()


@pytest.mark.parametrize("name", ["input", "text"])
def test_texts_must_be_text(tmp_path, name):
    dataset = write(tmp_path / "a.jsonl", f'{{"{name}": 3}}', f'{{"{name}": 4}}')
    with pytest.raises(InputError, match=rf"record 1: {name} must be text, not 3"):
        dataset.check_records([name])
    dataset = write(tmp_path / "b.jsonl", f'{{"{name}": "x"}}', f'{{"{name}": 4}}')
    with pytest.raises(InputError, match=r"b\.jsonl:2: "):
        dataset.load()


def test_a_column_that_is_not_read_may_hold_anything(tmp_path):
    notes = ["x", {"y": 1}, float("nan")]
    lines = [json.dumps({"input": "一", "note": note}) for note in notes]
    dataset = write(tmp_path / "pairs.jsonl", *lines)
    dataset.check_records(["input"])
    assert dataset.load()["note"][:] == ["x", {"y": 1}, None]
    turns = json.dumps([{"role": "user", "content": "一"}])
    lines = [f'{{"conversations": {turns}, "input": {value}}}' for value in ('"x"', "3")]
    dataset = write(tmp_path / "talks.jsonl", *lines)
    dataset.check_records(["conversations"])
    assert dataset.load()["input"][:] == ["x", 3]


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"tasks\.jsonl: no such file"):
        JSONLinesDataset(filepath=tmp_path / "tasks.jsonl").check_records()


@pytest.mark.parametrize("read", ["load", "check_records"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "途中で', r"tasks\.jsonl:3: not JSON \(.*at column"),
        ('{"input": 3}', r"tasks\.jsonl:3: a value of another type: 'input' "),
    ],
)
def test_bad_line_is_named(tmp_path, line, message, read):
    dataset = write(tmp_path / "tasks.jsonl", '{"input": "一"}', "", line, '{"input": "二"}')
    with pytest.raises(InputError, match=message):
        getattr(dataset, read)()


def test_interrupted_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    dataset = JSONLinesDataset(filepath=path)
    dataset.save(Dataset.from_list(RECORDS))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(DatasetError, match="is larger than the file system"):
            dataset.save(Dataset.from_dict({"output": ["長い" * 10_000] * 9}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_compressed(tmp_path):
    first, second = (JSONLinesDataset(filepath=tmp_path / f"{i}.jsonl.gz") for i in (1, 2))
    for dataset in (first, second):
        dataset.save(Dataset.from_list(RECORDS))
    written = (tmp_path / "1.jsonl.gz").read_bytes()
    assert gzip.decompress(written).decode().count("\n") == len(RECORDS)
    assert written == (tmp_path / "2.jsonl.gz").read_bytes()
    assert first.load().to_list() == RECORDS
    first.check_records(columns=("id", "input"))
    assert [row[0] for row in first.preview(nrows=2)["data"]] == [1, 2]


def test_columns_that_json_does_not_have_are_saved_as_text(tmp_path):
    dataset = JSONLinesDataset(filepath=tmp_path / "images.jsonl")
    dataset.save(Dataset.from_list([{"image": b"x"}]))
    assert dataset.load().to_list() == [{"image": "eA=="}]


def test_large_file_is_mapped_from_the_cache_folder_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "of datasets")
    dataset = JSONLinesDataset(filepath=tmp_path / "long.jsonl")
    dataset.save(Dataset.from_dict({"n": range(700), "text": ["あ" * 40_000] * 700}))
    assert not (tmp_path / "of datasets").exists()
    loaded = dataset.load()
    assert (tmp_path / "of datasets").is_dir()
    assert loaded["n"][:] == [*range(700)]
    assert set(loaded["text"]) == {"あ" * 40_000}


def test_real_conversations(shared_data, tmp_path):
    path = shared_data / "dolly_ja" / "conversations.jsonl"
    if not path.exists():
        pytest.skip(f"no conversations at {path}")
    expected = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    copy = JSONLinesDataset(filepath=tmp_path / "copy.jsonl")
    copy.save(JSONLinesDataset(filepath=path).load())
    assert [json.loads(line) for line in (tmp_path / "copy.jsonl").open("rb")] == expected


def test_a_directory_in_the_place_of_the_file_does_not_exist_as_output(tmp_path):
    (tmp_path / "pairs.jsonl").mkdir()
    assert not JSONLinesDataset(filepath=tmp_path / "pairs.jsonl").exists()
