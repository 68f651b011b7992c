import logging

import pytest
from datasets import Dataset, DatasetDict

from ja_instruct.errors import InputError
from ja_instruct.tables.columns import as_dataset

RECORDS = [{"input": "日本の首都は?"}, {"input": "空は何色?"}]


def test_whichever_way_they_come():
    dataset = Dataset.from_list(RECORDS)
    for data in (dataset, DatasetDict({"train": dataset}), RECORDS):
        assert as_dataset(data, "pairs").to_list() == RECORDS


def test_several_splits():
    splits = DatasetDict({name: Dataset.from_list(RECORDS) for name in ("train", "test")})
    with pytest.raises(InputError, match=r"'pairs' has 2 splits \(train, test\); choose one"):
        as_dataset(splits, "pairs")


def test_half_a_surrogate_pair(caplog):
    turns = [{"role": "user"}, {"role": "\udfff"}]
    records = [{"input": "空は何色?", "turns": []}, {"input": "x\ud83dy", "turns": turns}]
    with caplog.at_level(logging.WARNING, "ja_instruct"):
        dataset = as_dataset(records, "pairs")
    assert dataset["input"][:] == ["空は何色?", "x\ufdd0y"]
    assert dataset["turns"][1] == [{"role": "user"}, {"role": "\ufdd0"}]
    assert "'pairs' contains a lone surrogate" in caplog.text


def test_records_of_several_types():
    records = [
        {"input": "一", "meta": "web"},
        {"input": "二", "meta": {"page": 3}},
        {"input": "三"},
    ]
    dataset = as_dataset(records, "pairs")
    assert dataset.to_list() == [*records[:2], {"input": "三", "meta": None}]
    turns = [[{"role": "user", "content": "問"}], [{"role": "user", "content": 3}]]
    with pytest.raises(InputError, match=r"'talks': record 2: 'conversations\[\]\.content'"):
        as_dataset([{"conversations": one} for one in turns], "talks")
