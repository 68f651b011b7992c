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


def test_empty_file_is_valid_if_no_column_is_required(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.touch()
    dataset = JSONLinesDataset(filepath=path)
    dataset.check_records()
    with pytest.raises(InputError, match=r"tasks\.jsonl: holds no records"):
        dataset.check_records(columns=("task_id", "input"))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"tasks\.jsonl: no such file"):
        JSONLinesDataset(filepath=tmp_path / "tasks.jsonl").check_records()


@pytest.mark.parametrize("read", ["load", "check_records"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "途中で', r"tasks\.jsonl:3: not JSON \(.*at column"),
        ('{"input": 3}', r"tasks\.jsonl:3: the records disagree on the type of a column: 'input' "),
    ],
)
def test_bad_line_is_named(tmp_path, line, message, read):
    dataset = write(tmp_path / "tasks.jsonl", '{"input": "一"}', "", line, '{"input": "二"}')
    with pytest.raises(InputError, match=message):
        getattr(dataset, read)()


def test_missing_column_is_named(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"task_id": 0, "input": "一"}', '{"task_id": 1}')
    dataset.check_records(columns=("task_id",))
    with pytest.raises(InputError, match=r"record 2 lacks input; it has task_id"):
        dataset.check_records(columns=("task_id", "input"))


def test_null_in_a_column_of_texts_is_named(tmp_path):
    dataset = write(tmp_path / "qa.jsonl", '{"input": "一", "output": "二"}', '{"input": null}')
    dataset.check_records(columns=())
    with pytest.raises(InputError, match=r"qa\.jsonl: record 2: input must be text, not null"):
        dataset.check_records(columns=("input",))


def test_repeated_task_ids_are_named(tmp_path):
    lines = [json.dumps({"task_id": number}) for number in (3, 1, 3)]
    dataset = write(tmp_path / "tasks.jsonl", *lines)
    with pytest.raises(InputError, match=r"records 1 and 3 have the same task_id 3"):
        dataset.check_records(columns=("task_id",))


def test_interrupted_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    dataset = JSONLinesDataset(filepath=path)
    dataset.save(Dataset.from_list(RECORDS))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(DatasetError, match="File too large"):
            dataset.save(Dataset.from_dict({"output": ["長い" * 10_000] * 9}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_selected_records_are_saved_in_their_order(tmp_path):
    dataset = JSONLinesDataset(filepath=tmp_path / "pairs.jsonl")
    dataset.save(Dataset.from_list(RECORDS).select([2, 0]))
    assert dataset.load().to_list() == [RECORDS[2], RECORDS[0]]


def test_compressed(tmp_path):
    first, second = (JSONLinesDataset(filepath=tmp_path / f"{i}.jsonl.gz") for i in (1, 2))
    for dataset in (first, second):
        dataset.save(Dataset.from_list(RECORDS))
    written = (tmp_path / "1.jsonl.gz").read_bytes()
    assert gzip.decompress(written).decode().count("\n") == len(RECORDS)
    assert written == (tmp_path / "2.jsonl.gz").read_bytes()
    assert first.load().to_list() == RECORDS
    first.check_records(columns=("id", "input"))
    assert first.preview(nrows=1)["data"][0][0] == 1


def test_column_that_json_cannot_represent(tmp_path):
    dataset = JSONLinesDataset(filepath=tmp_path / "images.jsonl")
    with pytest.raises(InputError, match="column 'image' holds binary, which JSON cannot"):
        dataset.save(Dataset.from_dict({"image": [b"\x89PNG"]}))
    assert not dataset.exists()


def test_null_is_not_a_missing_column(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", '{"task_id": 0, "note": null}')
    dataset.check_records(columns=("task_id", "note"))


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


def test_preview_shows_the_first_records(tmp_path):
    dataset = write(tmp_path / "tasks.jsonl", *(json.dumps({"task_id": i}) for i in range(9)))
    assert dataset.preview(nrows=2)["data"] == [[0], [1]]
