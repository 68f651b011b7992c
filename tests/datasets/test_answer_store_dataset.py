import pytest
from kedro.io import DataCatalog

from ja_instruct.datasets import AnswerStoreDataset
from ja_instruct.errors import InputError


def test_appended_answers_are_loaded_by_another_catalog(tmp_path):
    path = str(tmp_path / "answers.jsonl")
    entry = {"type": "ja_instruct.datasets.AnswerStoreDataset", "filepath": path}
    dataset = DataCatalog.from_config({"answer_store": entry}).get("answer_store")
    assert not dataset.exists()
    dataset.check()
    dataset.load().append("a", {"text": "はい"})
    assert dataset.exists()
    store = DataCatalog.from_config({"answer_store": entry}).load("answer_store")
    assert store.get("a") == {"text": "はい"}


def test_directory_in_its_place_is_refused_before_the_run(tmp_path):
    dataset = AnswerStoreDataset(filepath=tmp_path)
    for call in (dataset.check, dataset.load):
        with pytest.raises(InputError, match="answers cannot be appended"):
            call()
