import pytest
from kedro.io import DataCatalog

from ja_instruct.datasets import AnswerStoreDataset
from ja_instruct.errors import InputError


@pytest.fixture
def dataset(tmp_path):
    return AnswerStoreDataset(filepath=tmp_path / "answers.jsonl", metadata={"layer": "x"})


def test_what_is_appended_is_loaded_next_time(dataset):
    assert not dataset.exists()
    dataset.check()
    dataset.load().append("a", {"text": "はい"})
    assert dataset.exists()
    assert dataset.load().get("a") == {"text": "はい"}


def test_directory_in_its_place_is_refused_before_the_run(tmp_path):
    dataset = AnswerStoreDataset(filepath=tmp_path)
    for call in (dataset.check, dataset.load):
        with pytest.raises(InputError, match="answers cannot be appended"):
            call()


def test_is_made_from_the_catalog(tmp_path):
    path = str(tmp_path / "answers.jsonl")
    entry = {"type": "ja_instruct.datasets.AnswerStoreDataset", "filepath": path}
    assert DataCatalog.from_config({"answer_store": entry}).load("answer_store").path.name == (
        "answers.jsonl"
    )
