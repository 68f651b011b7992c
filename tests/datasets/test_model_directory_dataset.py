import json

import pytest
from kedro.io import DatasetError

from ja_instruct.datasets import ModelDirectoryDataset


@pytest.fixture
def dataset(tmp_path):
    return ModelDirectoryDataset(filepath=tmp_path / "model", model_id="owner/name")


def test_configuration_is_there_before_the_weights_are(dataset, tmp_path):
    assert dataset.peek_config() is None
    (tmp_path / "model").mkdir()
    assert dataset.peek_config() is None
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "gemma2"}), "utf-8")
    assert dataset.peek_config() == {"model_type": "gemma2"}


def test_is_never_saved_to(dataset):
    with pytest.raises(DatasetError, match="never written to"):
        dataset.save(object())
